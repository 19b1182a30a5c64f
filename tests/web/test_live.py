"""训练页的数据：由训练留下的文件读出现状，坏的、写了一半的都不要紧。"""

from __future__ import annotations

from training import runlog
from web import live

HEADER = "iter,update,loss,val_bpc,lr,tokens,tokens_per_s,seconds\n"


def write_log(folder, updates, val_every=10, val=lambda u: 8 - u / 100, tail=""):
    rows = []
    for u in range(1, updates + 1):
        bpc = val(u) if u % val_every == 0 else ""
        rows.append(f"{u * 8},{u},{9 - u / 100},{bpc},0.001,{u * 4096},2000,{u * 2}")
    (folder / "train_log.csv").write_text(HEADER + "\n".join(rows) + "\n" + tail, encoding="utf-8")


def test_training_not_started(tmp_path):
    assert live.status(str(tmp_path)) == {"state": "none", "samples": []}


def test_training_status(tmp_path):
    write_log(tmp_path, 50, tail="408,51,8.4")
    (tmp_path / "run_info.json").write_text('{"train_iter": 800, "memory_mb": 512.5}')
    runlog.add_sample(tmp_path / "samples.txt", 80, "春天", "春天\n\n树醒了")
    runlog.add_sample(tmp_path / "samples.txt", 400, "雪", "<b>雪</b>")
    status = live.status(str(tmp_path))
    assert status["state"] == "running"
    assert status["iter"] == 400 and status["total"] == 800 and status["update"] == 50
    assert status["eta"] == 100 and status["tokens_per_s"] == 2000  # 每迭代 0.25 秒
    assert status["memory_mb"] == 512.5
    assert status["best"] == {"iter": 400, "val_bpc": 7.5}
    assert status["val"] == [[80 * k, 8 - k / 10] for k in range(1, 6)]
    assert [sample["iter"] for sample in status["samples"]] == [400, 80]
    assert status["samples"][1] == {"iter": 80, "prompt": "春天", "text": "春天\n\n树醒了"}


def test_training_states(tmp_path):
    write_log(tmp_path, 5)
    path = tmp_path / "train_log.csv"
    then = path.stat().st_mtime
    assert live.status(str(tmp_path), now=then + 10)["state"] == "running"
    assert live.status(str(tmp_path), now=then + 9999)["state"] == "stopped"
    assert live.status(str(tmp_path), now=then)["eta"] is None  # 不知道总数
    (tmp_path / "run_info.json").write_text('{"train_iter": 40}')
    assert live.status(str(tmp_path), now=then + 9999)["state"] == "done"


def test_overfitting_is_marked(tmp_path):
    write_log(tmp_path, 100, val=lambda u: 7 + abs(u - 40) / 100)
    assert live.status(str(tmp_path))["overfitting"] == 320
    write_log(tmp_path, 100)
    assert live.status(str(tmp_path))["overfitting"] is None


def test_log_with_garbage(tmp_path):
    path = tmp_path / "train_log.csv"
    for content in (b"", b"\xff\xfe\x00", HEADER.encode(), b"a,b\n1,2\n", b"\0" * 100):
        path.write_bytes(content)
        assert live.read_log(path) == []
    good = "8,1,nan,,0.1,10,5,1\n16,2,7.0,inf,0.1,20,5,2\n8,1,9.0,,0.1,10,5,3\n"
    path.write_text(HEADER + good, encoding="utf-8")
    assert [(row["iter"], row["loss"]) for row in live.read_log(path)] == [(8, 9.0)]  # 重来过


def test_thin_keeps_the_shape():
    points = [[i, float(i)] for i in range(5000)]
    thinned = live.thin(points, 100)
    assert len(thinned) <= 100 and thinned[-1] == [4999, 4999.0]
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)
    assert abs(sum(y for _, y in thinned) / len(thinned) - 2500) < 50
    assert live.thin(points[:7], 100) == points[:7]
