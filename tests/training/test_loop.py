"""训练循环：续训逐位相同、出错有办法、记录不缺不重、真的学得会。"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import torch

import checkpoint
import dataset
from gpt import GPT
from support import hardware
from support.console import UserError
from tests.small_run import ROOT, SMALL, build_data, quick, stop_before, values, work_dir
from training import batching, loop, prepare, runlog, validation
from training.distributed import Ranks
from training.gradients import Gradients
from training.stepper import LossScale
from training.stop import Interrupted
from writing import engine

TIMED = ("tokens_per_s", "seconds")


@pytest.fixture(autouse=True, scope="module")
def quick_start():
    """开场不测矩阵乘峰值，保存时不画图。"""
    with quick():
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, data):
    """从头到尾没有中断的一次训练。"""
    folder = work_dir(tmp_path_factory.mktemp("runs") / "unbroken", data)
    loop.train(values(folder))
    return folder


def log_rows(folder):
    with open(folder / "train_log.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]


def assert_same_run(one, other):
    """两个目录里的训练结果逐位相同。"""
    a, b = (checkpoint.load(folder / "checkpoint.bin") for folder in (one, other))
    for part in ("weights", "best"):
        assert_equal(a[part], b[part])
    assert_equal(a["optimizer"], b["optimizer"])
    assert_equal(
        checkpoint.load(one / "best_model.bin")["weights"],
        checkpoint.load(other / "best_model.bin")["weights"],
    )
    assert log_rows(one) == log_rows(other)
    texts = [(folder / "samples.txt").read_text(encoding="utf-8") for folder in (one, other)]
    assert texts[0] == texts[1]


def assert_equal(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    else:
        assert a == b


def test_short_run_leaves_everything(unbroken):
    names = ["checkpoint.bin", "best_model.bin", "train_log.csv", "samples.txt", "run_info.json"]
    assert all((unbroken / name).exists() for name in names)
    rows = log_rows(unbroken)
    assert [int(row["update"]) for row in rows] == list(range(1, 13))
    assert [int(row["iter"]) for row in rows] == [3 * n for n in range(1, 12)] + [35]
    assert [row["iter"] for row in rows if row["val_bpc"]] == ["9", "18", "27", "35"]
    samples = (unbroken / "samples.txt").read_text(encoding="utf-8")
    assert [f"── 迭代 {n} ──" in samples for n in (12, 24, 35)] == [True] * 3


def test_warm_start_is_ahead_of_a_random_one(tmp_path, data):
    warm, cold = work_dir(tmp_path / "warm", data), work_dir(tmp_path / "cold", data)
    loop.train(values(warm, INIT="data"))
    loop.train(values(cold, INIT="random"))
    first, last = ([float(log_rows(f)[n]["loss"]) for f in (warm, cold)] for n in (0, -1))
    assert first[0] < first[1] - 0.5 and last[0] < last[1]


def test_checkpoint_from_before_a_new_constant_goes_on(tmp_path, data, unbroken):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, TRAIN_ITER=18))
    state = checkpoint.load(folder / "checkpoint.bin")
    del state["config"]["INIT"]
    checkpoint.save(folder / "checkpoint.bin", state)
    assert loop.train(values(folder))["updates"] == 12


def test_few_poems_start_at_random(tmp_path, data, unbroken):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, INIT="random"))
    assert_same_run(folder, unbroken)


def test_interrupted_run_is_the_same_run(tmp_path, data, unbroken, monkeypatch, capsys):
    folder = work_dir(tmp_path / "run", data)
    stop_before(monkeypatch, 0, 5, 9)
    for expected in (0, 5, 9):
        result = loop.train(values(folder))
        assert result["stopped"] and result["updates"] == expected
        assert loop.exit_code(result) == 130
        assert "重新运行同一条命令" in capsys.readouterr().out
    loop.train(values(folder))
    assert_same_run(folder, unbroken)


def test_interrupt_during_validation_is_the_same_run(tmp_path, data, unbroken, monkeypatch):
    folder = work_dir(tmp_path / "run", data)
    real, calls = validation.bits_per_char, []

    def bits_per_char(run):
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted
        return real(run)

    monkeypatch.setattr(validation, "bits_per_char", bits_per_char)
    loop.train(values(folder))
    assert len(log_rows(folder)) == 5  # 第 6 次更新已做，它的验证还没有
    loop.train(values(folder))
    assert_same_run(folder, unbroken)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows 没有 SIGKILL")
def test_killed_run_is_the_same_run(tmp_path, data, unbroken):
    """在更新之前、写检查点写到一半、两次改名之间被 SIGKILL，各接一次，最后跑完。"""
    folder = work_dir(tmp_path / "run", data)
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values(folder)), encoding="utf-8")
    moments = ("update:7", "write:4", "rename:5", "none")
    codes = []
    for moment in moments:
        command = [sys.executable, str(ROOT / "tests" / "training_worker.py"), str(file), moment]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
        codes.append(subprocess.run(command, env=environment, capture_output=True).returncode)
    assert codes == [-9, -9, -9, 0]
    assert_same_run(folder, unbroken)
    assert not list(folder.glob("*.tmp"))


def test_half_written_log_line_is_mended(tmp_path, data, unbroken, monkeypatch):
    folder = work_dir(tmp_path / "run", data)
    stop_before(monkeypatch, 7)
    loop.train(values(folder))
    with open(folder / "train_log.csv", "a", encoding="utf-8") as file:
        file.write("24,8,5.5,,0.003,99,1,2\n27,9,5.")  # 检查点之后的行，末行写了一半
    loop.train(values(folder))
    assert_same_run(folder, unbroken)


def test_finished_run_says_how_to_prolong(unbroken, capsys):
    before = (unbroken / "checkpoint.bin").read_bytes()
    result = loop.train(values(unbroken))
    text = capsys.readouterr().out
    assert "已经完成" in text and "TRAIN_ITER" in text and "--RESUME=off" in text
    assert result["updates"] == 12 and (unbroken / "checkpoint.bin").read_bytes() == before


def test_prolonged_run_continues(tmp_path, data, monkeypatch, capsys):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, TRAIN_ITER=6))
    result = loop.train(values(folder, TRAIN_ITER=12, LEARNING_RATE=0.001))
    text = capsys.readouterr().out
    assert result["updates"] == 4
    assert "TRAIN_ITER：6 → 12" in text and "LEARNING_RATE" in text
    assert [int(row["update"]) for row in log_rows(folder)] == [1, 2, 3, 4]


def test_changes_that_make_another_run_are_refused_together(tmp_path, data, unbroken):
    changes = {"GPT_DIM": 64, "SEED": 7, "OPTIMIZER": "adamw", "BATCH_SIZE": 2, "ACCUM_STEPS": 4}
    before = (unbroken / "checkpoint.bin").read_bytes()
    with pytest.raises(UserError) as caught:
        loop.train(values(unbroken, **changes))
    assert all(name in str(caught.value) for name in changes)
    assert "--RESUME=off" in str(caught.value)
    assert (unbroken / "checkpoint.bin").read_bytes() == before


def test_other_dataset_or_tokenizer_is_refused(tmp_path, data, unbroken):
    folder = tmp_path / "run"
    folder.mkdir()
    build_data(folder, vocab=400)
    (folder / "checkpoint.bin").write_bytes((unbroken / "checkpoint.bin").read_bytes())
    with pytest.raises(UserError) as caught:
        loop.train(values(folder))
    assert "分词器" in str(caught.value) and "dataset.bin" in str(caught.value)


def test_resume_off_keeps_old_files_aside(tmp_path, data):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, TRAIN_ITER=3))
    old = (folder / "best_model.bin").read_bytes()
    loop.train(values(folder, TRAIN_ITER=6, RESUME="off"))
    assert (folder / "best_model.old1.bin").read_bytes() == old
    assert (folder / "train_log.old1.csv").exists() and (folder / "checkpoint.old1.bin").exists()
    assert len(log_rows(folder)) == 2


def test_missing_dataset_names_the_script(tmp_path):
    with pytest.raises(UserError, match="train_dataset_one"):
        loop.train(values(tmp_path))


def test_damaged_checkpoint_falls_back_to_the_previous(tmp_path, data, unbroken, monkeypatch):
    folder = work_dir(tmp_path / "run", data)
    stop_before(monkeypatch, 9)
    loop.train(values(folder))
    content = bytearray((folder / "checkpoint.bin").read_bytes())
    content[len(content) // 2] ^= 4
    (folder / "checkpoint.bin").write_bytes(bytes(content))
    with pytest.warns(UserWarning, match=r"checkpoint\.prev\.bin"):
        loop.train(values(folder))
    assert_same_run(folder, unbroken)


def out_of_memory_above(monkeypatch, rows):
    """一次前向超过 rows 行就显存不足。"""
    real = GPT.forward

    def forward(self, ids, where=None, labels=None, *rest):
        if labels is not None and len(ids) > rows:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, ids, where, labels, *rest)

    monkeypatch.setattr(GPT, "forward", forward)


def test_out_of_memory_splits_rows_with_the_same_gradient(tmp_path, data, monkeypatch, capsys):
    options = {"TRAIN_ITER": 9, "DROPOUT": 0.0}
    whole, parts = work_dir(tmp_path / "whole", data), work_dir(tmp_path / "parts", data)
    loop.train(values(whole, **options))
    out_of_memory_above(monkeypatch, 2)
    loop.train(values(parts, **options))
    assert "梯度不变" in capsys.readouterr().out
    a, b = (checkpoint.load(f / "checkpoint.bin")["weights"] for f in (whole, parts))
    for name in a:
        assert torch.linalg.norm(a[name] - b[name]) <= 1e-5 * torch.linalg.norm(a[name]), name


def test_big_micro_batches_are_computed_in_parts_on_the_cpu(tmp_path, data, monkeypatch):
    options = {"TRAIN_ITER": 6, "DROPOUT": 0.0, "BATCH_SIZE": 8}
    whole, parts = work_dir(tmp_path / "whole", data), work_dir(tmp_path / "parts", data)
    loop.train(values(whole, **options))
    monkeypatch.setattr(batching, "_CPU_TOKENS", 100)
    assert prepare.open_run(values(parts, **options), Ranks()).gradients.split > 1
    loop.train(values(parts, **options))
    a, b = (checkpoint.load(f / "checkpoint.bin")["weights"] for f in (whole, parts))
    for name in a:
        assert torch.linalg.norm(a[name] - b[name]) <= 1e-5 * torch.linalg.norm(a[name]), name


def test_out_of_memory_at_one_row_stops_with_advice(tmp_path, data, monkeypatch):
    folder = work_dir(tmp_path / "run", data)
    out_of_memory_above(monkeypatch, 0)
    with pytest.raises(UserError, match="GRAD_CHECKPOINT"):
        loop.train(values(folder))


def test_non_finite_update_is_skipped_and_counted(tmp_path, data, monkeypatch, capsys):
    folder = work_dir(tmp_path / "run", data)
    real, updates = Gradients.compute, []

    def compute(self, batches, trained, scale, stop):
        updates.append(1)
        return real(self, batches, trained, float("nan") if len(updates) == 3 else scale, stop)

    monkeypatch.setattr(Gradients, "compute", compute)
    result = loop.train(values(folder, TRAIN_ITER=12))
    assert result["skipped"] == 1 and result["updates"] == 4
    assert "跳过" in capsys.readouterr().out
    weights = checkpoint.load(folder / "checkpoint.bin")["weights"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_many_non_finite_updates_stop_the_run(tmp_path, data, monkeypatch):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, TRAIN_ITER=6))
    saved = (folder / "checkpoint.bin").read_bytes()
    monkeypatch.setattr(Gradients, "compute", _nan_gradients)
    with pytest.raises(UserError, match="连续 4 次"):
        loop.train(values(folder, TRAIN_ITER=60, MAX_BAD_STEPS=4, SAVE_EVERY=1000))
    assert (folder / "checkpoint.bin").read_bytes() == saved


def _nan_gradients(gradients, *_):
    for param in gradients.model.parameters():
        param.grad = torch.full_like(param, float("nan"))
    return float("nan")


def test_fp16_overflow_halves_the_scale():
    scale = LossScale(enabled=True)
    scale.update(finite=False)
    assert scale.value == 32768.0
    for _ in range(LossScale.GROWTH):
        scale.update(finite=True)
    assert scale.value == 65536.0
    assert LossScale(enabled=False).value == 1.0


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_low_precision_learns_on_the_same_path(tmp_path, data, dtype):
    if dtype == "fp16" and not hasattr(torch, "get_autocast_dtype"):
        pytest.skip("PyTorch 2.4 以前，CPU 上没有 fp16")
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, DTYPE=dtype, TRAIN_ITER=24))
    rows = log_rows(folder)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) - 0.1
    state = checkpoint.load(folder / "checkpoint.bin")
    assert state["chosen"]["DTYPE"] == dtype
    assert all(value.dtype == torch.float32 for value in state["weights"].values())


def test_fp16_on_an_old_cpu_torch_is_a_message(monkeypatch):
    monkeypatch.delattr(torch, "get_autocast_dtype", raising=False)
    with pytest.raises(UserError, match="--DTYPE=fp32"):
        hardware.pick_dtype("fp16", torch.device("cpu"))


def test_gradient_checkpointing_gives_the_same_weights(tmp_path, data):
    plain, saved = work_dir(tmp_path / "a", data), work_dir(tmp_path / "b", data)
    loop.train(values(plain, TRAIN_ITER=6))
    loop.train(values(saved, TRAIN_ITER=6, GRAD_CHECKPOINT="on"))
    a, b = (checkpoint.load(f / "checkpoint.bin")["weights"] for f in (plain, saved))
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=0, atol=1e-6), name


def test_full_disk_keeps_the_old_checkpoint_and_goes_on(tmp_path, data, monkeypatch, capsys):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, TRAIN_ITER=3))
    real, left = torch.save, [2]

    def save(*args, **options):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        return real(*args, **options)

    monkeypatch.setattr(checkpoint.torch, "save", save)
    loop.train(values(folder, TRAIN_ITER=12))
    text = capsys.readouterr().out
    assert "写不下" in text and "腾出空间" in text
    assert checkpoint.load(folder / "checkpoint.bin")["position"]["update"] == 4


def test_early_stop_ends_the_run(tmp_path, data, monkeypatch, capsys):
    folder = work_dir(tmp_path / "run", data)
    monkeypatch.setattr(validation, "bits_per_char", lambda run: 5.0)
    result = loop.train(values(folder, EARLY_STOP=2))
    assert result["updates"] == 9 and "提前结束" in capsys.readouterr().out


def test_overfits_eight_poems_and_recites_them(tmp_path):
    """VAL_SHARE=0：八首诗学到每字 0.1 比特以下，并一字不差地背出来。"""
    build_data(tmp_path, count=8, vocab=500, val_share=0.0, max_seq_len=512)
    options = {"MAX_SEQ_LEN": 512, "GPT_DIM": 64, "GPT_FF": 128, "DROPOUT": 0.0, "BATCH_SIZE": 4}
    options.update(TRAIN_ITER=110, ACCUM_STEPS=1, LEARNING_RATE=0.01, MUON_LR=0.02)
    options.update(EVAL_EVERY=1000, SAVE_EVERY=1000, SAMPLE_EVERY=1000, WARMUP_STEPS=5)
    result = loop.train(values(tmp_path, **options))
    assert result["val_bpc"] < 0.1
    poet = engine.Poet.load(work_dir=str(tmp_path), device="cpu")
    with dataset.load(tmp_path / "dataset.bin") as poems:
        assert len(poems) == 8 and poems.whole.all()
        for index in range(8):
            title = poems.poem_info(int(poems.poem_ids[index]))["title"]
            request = poet.request(title, temperature=0, repetition_penalty=1.0)
            written = "".join(text for _, text, _ in poet.poems(request))
            assert written == poems.body_text(index, poet.tok)


def test_every_document_is_trained_once_an_epoch(tmp_path, data):
    folder = work_dir(tmp_path / "run", data)
    corpus = prepare.open_run(values(folder), Ranks()).corpus
    for epoch in (0, 1):
        first = epoch * corpus.plan.per_epoch
        seen = [
            int(i)
            for n in range(first, first + corpus.plan.per_epoch)
            for i in corpus.plan.documents(n)
        ]
        assert sorted(seen) == list(range(len(corpus.lengths)))
    tokens = sum(corpus.batch(n).tokens for n in range(corpus.plan.per_epoch))
    cells = sum(corpus.batch(n).inputs.size for n in range(corpus.plan.per_epoch))
    assert tokens == int(corpus.lengths.sum()) and tokens / cells > 0.9
    assert all(corpus.batch(n).inputs.size <= 4 * 64 for n in range(corpus.plan.per_epoch))


def test_scripts_run_from_the_command_line(tmp_path, data):
    folder = work_dir(tmp_path / "run", data)
    chosen = {**SMALL, "WORK_DIR": folder, "TRAIN_ITER": 3}
    words = [f"--{name}={value}" for name, value in chosen.items()]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_gpt.py"), *words],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "gbk"},
    )
    assert done.returncode == 0, done.stderr
    assert "训练完成" in done.stdout.decode("gbk") and "Traceback" not in done.stderr.decode("gbk")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows 没有伪终端")
def test_closed_terminal_saves_and_tells_the_truth(tmp_path, data):
    """关掉终端：做完的更新存下来，说不出话也不要紧，退出码是 128 + SIGHUP。"""
    import fcntl
    import pty
    import struct
    import termios

    folder = work_dir(tmp_path / "run", data)
    chosen = {**SMALL, "WORK_DIR": folder, "TRAIN_ITER": 300000, "SAVE_EVERY": 300000}
    words = [f"--{name}={value}" for name, value in chosen.items()]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, str(ROOT / "train_gpt.py"), *words])
    size = struct.pack("HHHH", 24, 80, 0, 0)  # 没有宽度的终端里进度条不动，读就一直等着
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
    while os.read(terminal, 4096):  # 子进程意外结束时抛 OSError
        if len(runlog.read(folder / "train_log.csv")) > 3:
            break
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 128 + signal.SIGHUP
    assert checkpoint.load(folder / "checkpoint.bin")["position"]["update"] > 3
