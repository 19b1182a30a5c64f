"""多进程训练：与单进程是同一次训练；换进程数、被杀、失联、不一致时该怎样就怎样。"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import checkpoint
import config
import dataset
from support import artefacts, files, hardware
from support.console import UserError
from tests import ddp_worker
from tokenizer import BPETokenizer, HFTokenizer
from training import distributed, launch, loop, stop, unison

ROOT = Path(__file__).resolve().parents[2]
WORKER = str(ROOT / "tests" / "ddp_worker.py")
SMALL = {
    "MAX_SEQ_LEN": 64,
    "SEED": 1,
    "GPT_DIM": 32,
    "GPT_HEAD": 2,
    "GPT_FF": 64,
    "GPT_BLOCKS": 2,
    "TRAIN_ITER": 89,  # 每次更新 3 个微批次，最后一次只有 2 个：共 30 次更新
    "ACCUM_STEPS": 3,
    "BATCH_SIZE": 4,
    "EVAL_EVERY": 60,
    "SAVE_EVERY": 100000,
    "SAMPLE_EVERY": 100000,
    "MAX_NEW_TOKENS": 4,
    "DEVICE": "cpu",
    "DTYPE": "fp32",
    "COMPILE": "off",
    "DIST_TIMEOUT": 2.0,
}
KINDS = {  # 名字 → 优化器、丢弃率、起点、由浅到深与抽样
    "muon_dropout": {"OPTIMIZER": "muon", "DROPOUT": 0.2},
    "adamw_plain": {"OPTIMIZER": "adamw", "DROPOUT": 0.0, "INIT": "data"},
    "muon_plain": {"OPTIMIZER": "muon", "DROPOUT": 0.0},
    "adamw_dropout": {"OPTIMIZER": "adamw", "DROPOUT": 0.2},
    "muon_growing": {
        "OPTIMIZER": "muon",
        "DROPOUT": 0.2,
        "GPT_BLOCKS": 3,
        "GROW_AT": 0.5,
        "SAMPLED_SOFTMAX": 20,
    },
}
HALF = 14  # 在第几次更新（从 0 数）上停下


# ── 备好材料 ──────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """一份小数据集 dataset.bin 的路径。"""
    folder = tmp_path_factory.mktemp("data")
    poems = files.read_json(ROOT / "sample_poems.json")[:80]
    path = folder / "all_poems.json"
    path.write_text(json.dumps(poems, ensure_ascii=False), encoding="utf-8")
    bpe = BPETokenizer()
    bpe.train(["\n\n".join(poem["para"]) for poem in poems], 320)
    tok = HFTokenizer.from_json(bpe.to_json())
    dataset.build(path, tok, folder / "dataset.bin", max_seq_len=64, val_share=0.1)
    dataset.build(path, tok, folder / "other.bin", max_seq_len=64, val_share=0.1, seed=7)
    return folder / "dataset.bin"


def work_dir(folder: Path, data: Path) -> str:
    """放好 dataset.bin 的工作目录。"""
    folder.mkdir(parents=True)
    shutil.copy(data, folder / "dataset.bin")
    return str(folder)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def clean_env(**more) -> dict:
    """不受外面影响的环境变量，每个进程一个线程。"""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    kept.update(OMP_NUM_THREADS="1", PYTHONIOENCODING="utf-8", PYTHONUTF8="1", **more)
    return kept


def run_group(folder: Path, cases: list, world: int) -> dict:
    """手工设环境变量启动 world 个进程做完清单；返回 名字 → 各进程的结局。"""
    folder.mkdir(exist_ok=True)
    for case in cases:
        case["port"] = free_port()
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    group = []
    for rank in range(world):
        numbers = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
        log = open(folder / f"log{rank}.txt", "w", encoding="utf-8")  # noqa: SIM115
        command = [sys.executable, WORKER, str(folder)]
        group.append(
            subprocess.Popen(
                command, env=clean_env(**numbers), stdout=log, stderr=subprocess.STDOUT
            )
        )
        log.close()
    try:
        codes = [process.wait(timeout=1500) for process in group]
    finally:
        for process in group:
            process.kill()
    logs = "".join(
        (folder / f"log{rank}.txt").read_text(encoding="utf-8")[-2000:] for rank in range(world)
    )
    assert codes == [0] * world, logs
    return {
        case["name"]: [
            files.read_json(folder / f"{case['name']}.{rank}.json") for rank in range(world)
        ]
        for case in cases
    }


def losses(folder: Path) -> list:
    with open(Path(folder) / "train_log.csv", encoding="utf-8", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def weights(folder: Path) -> dict:
    return checkpoint.load(Path(folder) / artefacts.CHECKPOINT)["weights"]


def assert_same_run(one: Path, other: Path) -> None:
    """每次更新的损失、最后的权重都相同（到舍入）。"""
    assert losses(other) == pytest.approx(losses(one), rel=1e-5)
    ours, theirs = weights(one), weights(other)
    for name, value in ours.items():
        drift = (value - theirs[name]).norm() / value.norm()
        assert drift <= 1e-5, f"{name} 相差 {drift}"


def begun_from(old: Path, folder: Path, data: Path) -> dict:
    """从 old 里训练好的模型开始，掺一半旧诗的配置。"""
    mixed = {"FROM": str(old / "muon_plain"), "REPLAY_DATA": str(data), "REPLAY_SHARE": 0.5}
    return {**SMALL, **KINDS["muon_dropout"], **mixed, "WORK_DIR": work_dir(folder, data)}


def with_a_teacher(folder: Path, data: Path) -> dict:
    """先练一个老师再由它教的配置。"""
    return {
        **SMALL,
        **KINDS["muon_dropout"],
        "TEACHER": "1",
        "WORK_DIR": work_dir(folder, data),
    }


# ── 同一次训练 ────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def single(tmp_path_factory, data) -> Path:
    """各种设置的单进程训练，和一次在第 HALF 次更新上停下的。"""
    folder = tmp_path_factory.mktemp("single")
    torch.set_num_threads(1)
    for name, kind in KINDS.items():
        values = {**SMALL, **kind, "WORK_DIR": work_dir(folder / name, data)}
        assert ddp_worker.train({"values": values})["result"]["updates"] == 30
    for values in (
        begun_from(folder, folder / "begun", data),
        with_a_teacher(folder / "taught", data),
    ):
        assert ddp_worker.train({"values": values})["result"]["updates"] == 30
    values = {**SMALL, **KINDS["muon_dropout"], "WORK_DIR": work_dir(folder / "half", data)}
    case = {"values": values, "stop_at": HALF}
    assert ddp_worker.train(case)["result"]["stopped"] == signal.SIGTERM
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory, data, single) -> tuple:
    """两个进程的全部情形：(目录, 名字 → 两个进程的结局)。"""
    folder = tmp_path_factory.mktemp("pair")
    cases = [
        {"name": name, "values": {**SMALL, **kind, "WORK_DIR": work_dir(folder / name, data)}}
        for name, kind in KINDS.items()
    ]
    dropout = {**SMALL, **KINDS["muon_dropout"]}

    def case(name, **options):
        values = {**dropout, "WORK_DIR": work_dir(folder / name, data)}
        cases.append({"name": name, "values": values, **options})

    begun = {"name": "begun", "values": begun_from(single, folder / "begun", data)}
    shutil.copytree(single / "muon_plain", folder / "begun_1")  # 另一台机器上的路径可以不同
    shutil.copy(data, folder / "old_1.bin")
    elsewhere = {"FROM": str(folder / "begun_1"), "REPLAY_DATA": str(folder / "old_1.bin")}
    cases.append({**begun, "rank_values": {"1": elsewhere}})
    there = {"WORK_DIR": work_dir(folder / "taught_1", data)}  # 另一台机器的目录
    taught = {"values": with_a_teacher(folder / "taught", data), "rank_values": {"1": there}}
    cases.append({"name": "taught", **taught})
    shutil.copytree(single / "half", folder / "resumed")
    cases.append({"name": "resumed", "values": {**dropout, "WORK_DIR": str(folder / "resumed")}})
    # 两台机器各有各的目录，检查点只在 1 号那里
    shutil.copytree(single / "half", folder / "moved_1")
    case("moved", rank_values={"1": {"WORK_DIR": str(folder / "moved_1")}})
    case("half", stop_at=HALF, rank=1)
    case("hangup", stop_at=HALF, rank=0, signal="SIGHUP" if hasattr(signal, "SIGHUP") else "SIGINT")
    case("failed", fail_at=HALF, rank=1)
    case("short", short_at=HALF, rank=1)
    cases[-1]["values"].update(KINDS["adamw_plain"])
    case("config", rank_values={"1": {"LEARNING_RATE": 0.5, "GRAD_CLIP": 2.0}})
    shutil.copy(data.with_name("other.bin"), Path(work_dir(folder / "b", data)) / "dataset.bin")
    case("teachers", rank_values={"1": {"TEACHER": "2"}})
    case("dataset", rank_values={"1": {"WORK_DIR": str(folder / "b")}})
    case("missing", rank_values={"1": {"WORK_DIR": str(folder / "empty")}})
    case("flipped", flip_at=HALF, rank=1)
    cases[-1]["values"]["SAVE_EVERY"] = 6
    case("lost", hang_at=HALF, seconds=6, rank=1)
    cases[-1]["values"]["DIST_TIMEOUT"] = 0.04
    return folder, run_group(folder, cases, 2)


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_are_the_same_run(single, pair, name):
    assert_same_run(single / name, pair[0] / name)


def test_two_processes_begin_from_a_model_with_old_poems(single, pair):
    assert_same_run(single / "begun", pair[0] / "begun")
    one, two = (
        checkpoint.load(folder / "begun" / artefacts.CHECKPOINT) for folder in (single, pair[0])
    )
    assert two["best"]["val_bpc"] == pytest.approx(one["best"]["val_bpc"], rel=1e-6)
    assert two["position"]["old_best"] == pytest.approx(one["position"]["old_best"], rel=1e-6)


def test_two_processes_train_a_teacher_and_its_student(single, pair):
    """老师与学生都是同一次训练；老师只在写文件的那台机器上，另一台也学得到。"""
    for name in ("taught/teacher1", "taught"):
        assert_same_run(single / name, pair[0] / name)
    assert not (pair[0] / "taught_1" / "teacher1" / artefacts.BEST_MODEL).exists()


def test_four_processes_with_three_micro_batches(single, data, tmp_path):
    """有一个进程分不到微批次，仍是同一次更新。"""
    cases = [
        {
            "name": name,
            "values": {**SMALL, **KINDS[name], "WORK_DIR": work_dir(tmp_path / name, data)},
        }
        for name in ("muon_dropout", "adamw_plain")
    ]
    run_group(tmp_path, cases, 4)
    for case in cases:
        assert_same_run(single / case["name"], tmp_path / case["name"])


def test_validation_is_the_same(single, pair):
    one, two = (
        checkpoint.load(folder / "muon_plain" / artefacts.CHECKPOINT)["best"]
        for folder in (single, pair[0])
    )
    assert two["val_bpc"] == pytest.approx(one["val_bpc"], rel=1e-6)
    assert two["iter"] == one["iter"]


def test_all_split_when_one_is_short_of_memory(single, pair):
    folder, _ = pair
    assert_same_run(single / "adamw_plain", folder / "short")
    assert "分 2 份计算" in (folder / "log0.txt").read_text(encoding="utf-8")


# ── 换进程数、换机器 ──────────────────────────────────────────────────


def test_one_process_resumes_on_two(single, pair):
    assert_same_run(single / "muon_dropout", pair[0] / "resumed")


def test_two_processes_resume_on_one(single, pair):
    folder, outcomes = pair
    stopped = [outcome["result"]["stopped"] for outcome in outcomes["half"]]
    assert stopped == [signal.SIGTERM] * 2  # 信号只到了 1 号
    assert len(losses(folder / "half")) == HALF
    values = {**SMALL, **KINDS["muon_dropout"], "WORK_DIR": str(folder / "half")}
    ddp_worker.train({"values": values})
    assert_same_run(single / "muon_dropout", folder / "half")


def test_newest_checkpoint_counts_wherever_it_is(single, pair):
    """没有共享磁盘、编号重排以后，也不会从头开始；文件仍由有检查点的那台写。"""
    assert_same_run(single / "muon_dropout", pair[0] / "moved_1")
    assert not (pair[0] / "moved" / artefacts.CHECKPOINT).exists()


# ── 收场 ──────────────────────────────────────────────────────────────


def test_a_signal_to_one_process_is_everyones_exit_code(pair):
    """各进程的退出码都是 128 + 那个信号；没收到的那个不能以 0 退出。"""
    folder, outcomes = pair
    for name, number in (("half", signal.SIGTERM), ("hangup", signal.SIGHUP)):
        codes = [loop.exit_code(outcome["result"]) for outcome in outcomes[name]]
        assert codes == [128 + number] * 2
        assert checkpoint.load(folder / name / artefacts.CHECKPOINT)["position"]["update"] >= HALF


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="线程的名字取自 /proc")
@pytest.mark.parametrize("name", ["muon_plain", "half", "hangup", "failed", "lost", "config"])
def test_no_thread_of_gloo_outlives_the_run(pair, name):
    """解释器退出时还在收尾的 gloo 线程会中止整个进程；所以无论怎样结束，它都已经结束。"""
    for outcome in pair[1][name]:
        assert outcome.get("threads")
        assert [kind for kind in outcome["threads"] if "gloo" in kind] == []


def test_a_failure_of_one_process_ends_the_other(pair):
    folder, outcomes = pair
    assert outcomes["failed"][1]["failed"] == "ZeroDivisionError"
    assert outcomes["failed"][0]["kind"] == "LostPeer"
    assert checkpoint.load(folder / "failed" / artefacts.CHECKPOINT)["position"]["update"] == HALF


# ── 出错时说清楚 ──────────────────────────────────────────────────────


def test_disagreement_is_told_at_start(pair):
    folder, outcomes = pair
    for name, words in (
        ("config", ("LEARNING_RATE", "GRAD_CLIP", "0.5")),
        ("dataset", ("dataset.bin", "1 号进程")),
        ("teachers", ("TEACHER", "1 号进程是 2")),
        ("missing", ("1 号进程", "没有找到")),
    ):
        message = outcomes[name][0]["refused"]
        assert all(word in message for word in words), message
        assert outcomes[name][1]["kind"] == "UserError"  # 不是「失去联系」
        assert not (folder / name / artefacts.CHECKPOINT).exists()


def test_lost_peer_is_told_and_the_work_is_kept(pair):
    folder, outcomes = pair
    first = outcomes["lost"][0]
    assert first["kind"] == "LostPeer"
    assert "失去联系" in first["refused"] and "DIST_TIMEOUT" in first["refused"]
    assert checkpoint.load(folder / "lost" / artefacts.CHECKPOINT)["position"]["update"] == HALF


def test_a_rank_whose_weights_went_wrong_is_named(pair):
    """它的权重不进检查点：留下的是上一次核对过的。"""
    folder, outcomes = pair
    message = outcomes["flipped"][0]["refused"]
    assert "0，1 号进程彼此不同" in message and outcomes["flipped"][1]["kind"] == "UserError"
    assert checkpoint.load(folder / "flipped" / artefacts.CHECKPOINT)["position"]["update"] == HALF
    assert unison.odd_ones([7.0, 7.0, 3.0]) == "2 号进程与别的不同"


def test_port_taken(monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment["MASTER_PORT"] = str(listener.getsockname()[1])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="已被占用"):
            launch.start("on", 0.05)


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2"),
        ({"RANK": "一", "WORLD_SIZE": "2"}, "应当是整数"),
    ],
)
def test_wrong_environment(monkeypatch, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        launch.start("on", 0.05)


def test_nobody_comes(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(UserError, match="分布式启动失败"):
        launch.start("on", 0.01)


def test_restarts_do_not_begin_anew(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(UserError, match="RESUME=off"):
        launch.start("off", 0.05)


def test_no_gpu_for_a_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="第 2 号进程没有显卡"):
        hardware.pick_device("cuda", local_rank=2)


def test_no_nccl(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(UserError, match="没有 NCCL"):
        distributed.backend_for(torch.device("cuda", 0))


@pytest.mark.parametrize(
    "given",
    [
        ["--local-rank=3", "--SEED=1"],
        ["--local_rank=3", "--SEED=1"],
        ["--local-rank", "3", "--SEED=1"],
        ["--SEED=1", "--local_rank", "3"],
    ],
)
def test_launcher_arguments_are_dropped(given):
    assert launch.drop_launcher_arguments(given) == ["--SEED=1"]


@pytest.mark.parametrize(
    "environment, threads",
    [
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 4),  # torchrun 的默认值
        ({"LOCAL_WORLD_SIZE": "16", "OMP_NUM_THREADS": "1"}, 1),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3"}, None),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, None),
        ({"LOCAL_WORLD_SIZE": "1"}, None),
    ],
)
def test_cores_are_shared_out(monkeypatch, environment, threads):
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    launch.set_threads()
    assert chosen == ([] if threads is None else [threads])


# ── 启动器 ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rank, said", [("0", True), ("1", False)])
def test_only_one_process_complains_about_the_command_line(monkeypatch, capsys, rank, said):
    monkeypatch.setenv("LOCAL_RANK", rank)
    waited = []
    monkeypatch.setattr(launch.time, "sleep", waited.append)
    with pytest.raises(SystemExit), launch.one_voice():
        config.load("", argv=["--NOPE=1"])
    assert ("NOPE" in capsys.readouterr().err) == said
    assert bool(waited) != said  # 没说话的要等说话的先说完


def test_one_ctrl_c_delivered_twice_is_one(monkeypatch):
    """终端和 torchrun 各送一遍；五秒以后的才算第二次。"""
    now = [100.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: now[0])
    with stop.StopSignal(patient=True) as asked:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert asked.received == signal.SIGINT
        now[0] += 6
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows 上没有 SIGKILL，torchrun 也缺 libuv")
def test_killed_worker_comes_back_to_the_same_weights(data, tmp_path):
    """torch.distributed.launch 不间断的一次，与 torchrun 中途被 SIGKILL 的一次，逐位相同。"""
    kind = {**SMALL, **KINDS["muon_dropout"], "SAVE_EVERY": 9}
    unbroken = {**kind, "WORK_DIR": work_dir(tmp_path / "unbroken", data)}
    overrides = [f"--{name}={value}" for name, value in unbroken.items()]
    script = str(ROOT / "train_gpt_ddp.py")
    launch = ["-m", "torch.distributed.launch", "--nproc_per_node=2"]
    launch.append(f"--master_port={free_port()}")
    first = _launch([*launch, script, *overrides])
    case = {
        "name": "killed",
        "values": {**kind, "WORK_DIR": work_dir(tmp_path / "killed", data)},
        "kill_at": HALF,
        "rank": 1,
        "marker": str(tmp_path / "killed" / "marker"),
        "must_finish": True,
    }
    (tmp_path / "cases.json").write_text(json.dumps([case]), encoding="utf-8")
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=3"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", WORKER, str(tmp_path)]
    second = _launch(launch)
    assert Path(case["marker"]).exists(), second
    assert "续训" in second and "Traceback" not in first + second
    assert losses(tmp_path / "killed") == losses(tmp_path / "unbroken")
    ours, theirs = weights(tmp_path / "unbroken"), weights(tmp_path / "killed")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _launch(arguments):
    """运行 python 参数…，必须成功；返回全部输出。"""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=clean_env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=1500,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout
