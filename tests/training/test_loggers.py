"""LOGGER：曲线送到别处；没有装或出了错的说一句，训练照常；续训接着同一条曲线。"""

from __future__ import annotations

import sys
import types

import pytest

import config
from support import artefacts
from tests.small_run import values, work_dir
from training import loggers, loop, runlog

SHORT = {"TRAIN_ITER": 12, "EVAL_EVERY": 6, "SAVE_EVERY": 6, "SAMPLE_EVERY": 6}


class Notebook(loggers.Logger):
    """假的去处：记下收到的。"""

    homes, seen, closed = [], [], []

    def __init__(self, home):
        self.homes.append(home)

    def scalars(self, step, values):
        self.seen.append(("scalars", step, values))

    def poem(self, step, prompt, text):
        self.seen.append(("poem", step, text))

    def picture(self, step, path):
        self.seen.append(("picture", step, path.name))

    def close(self):
        self.closed.append(True)


class Broken(Notebook):
    def scalars(self, step, values):
        raise OSError("盘满了\n细节")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(loggers, "KINDS", {"tensorboard": Notebook, "wandb": Broken})
    for name in ("homes", "seen", "closed"):
        monkeypatch.setattr(Notebook, name, [])
    return Notebook


def test_a_run_and_its_resumption_make_one_curve(tmp_path, data, fake, capsys):
    folder = work_dir(tmp_path / "run", data)
    given = {**SHORT, "LOGGER": "csv,tensorboard,wandb"}
    loop.train(values(folder, **given))
    rows = runlog.read(folder / artefacts.TRAIN_LOG)
    curve = [(step, found) for kind, step, found in fake.seen if kind == "scalars"]
    assert [step for step, _ in curve] == [int(row["iter"]) for row in rows]
    assert curve[-1][1] == loggers.numbers(rows[-1]) and "val_bpc" in curve[-1][1]
    assert {"loss", "lr", "tokens_per_s"} <= set(curve[0][1]) and "val_bpc" not in curve[0][1]
    poems = [found for kind, _, found in fake.seen if kind == "poem"]
    assert len(poems) == 2 and "wandb 出错，不再用它（盘满了）" in capsys.readouterr().out
    first = fake.homes[0]
    assert first.done == 0 and "api_key" not in first.values and first.values["seed"] == 42
    loop.train(values(folder, **{**given, "TRAIN_ITER": 18}))
    assert {home.run_id for home in fake.homes} == {first.run_id}
    assert fake.homes[-1].done == 12 and fake.closed
    steps = [step for kind, step, _ in fake.seen if kind == "scalars"]
    assert steps == sorted(set(steps)) and steps[-1] == 18
    loop.train(values(folder, **{**given, "RESUME": "off"}))  # 新的训练是新的曲线
    assert fake.homes[-1].run_id != first.run_id and (folder / "logs.old1").is_dir()


def test_csv_alone_leaves_no_folder(tmp_path, data):
    folder = work_dir(tmp_path / "run", data)
    loop.train(values(folder, **SHORT))
    assert not (folder / artefacts.LOGS).exists()


@pytest.mark.parametrize("name", ["swanlab", "wandb"])
def test_a_missing_package_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    said = []
    found = loggers.Loggers(said.append)
    found.open(["csv", name], loggers.home(tmp_path, 0, {}))
    found.scalars(1, {"loss": 2.0})
    assert len(said) == 1 and f"pip install {name}" in said[0] and not found.active


@pytest.mark.parametrize("name", ["swanlab", "wandb"])
def test_trackers_are_called_as_documented(tmp_path, monkeypatch, name):
    """假的 swanlab 与 wandb：同一个编号、离线、横轴是迭代。"""
    logged, given = [], {}
    run = types.SimpleNamespace(
        log=lambda found, step: logged.append((step, found)), finish=lambda: logged.append("完")
    )
    module = types.SimpleNamespace(
        init=lambda **options: given.update(options) or run,
        Image=lambda path: path,
        Text=lambda text, caption: (caption, text),
        Table=lambda columns, data: data,
    )
    monkeypatch.setitem(sys.modules, name, module)
    picture = tmp_path / artefacts.LOSS_PICTURE
    picture.write_bytes(b"png")
    home = loggers.home(tmp_path, 0, {"seed": 1})
    found = loggers.Loggers(pytest.fail)
    found.open([name], home)
    found.scalars(3, {"loss": 2.0})
    found.poem(3, "春", "花开")
    found.picture(3, picture)
    found.close()
    assert given["id"] == home.run_id and given["mode"] == "offline"
    assert given["resume"] == "allow" and given["config"] == {"seed": 1}
    assert logged[0] == (3, {"loss": 2.0}) and "花开" in str(logged[1]) and logged[-1] == "完"
    assert logged[2] == (3, {"loss_picture": str(picture)})


def test_tensorboard_is_read_back(tmp_path, data):
    pytest.importorskip("tensorboard", reason="没有安装 tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = work_dir(tmp_path / "run", data)
    given = {**SHORT, "LOGGER": "tensorboard"}
    loop.train(values(folder, **given))
    loop.train(values(folder, **{**given, "TRAIN_ITER": 18}))
    found = EventAccumulator(str(folder / artefacts.LOGS / "tensorboard"))
    found.Reload()
    rows = runlog.read(folder / artefacts.TRAIN_LOG)
    for name in ("loss", "val_bpc", "lr"):
        wanted = [(int(row["iter"]), float(row[name])) for row in rows if row[name]]
        curve = [(event.step, event.value) for event in found.Scalars(name)]
        assert [step for step, _ in curve] == [step for step, _ in wanted]
        assert [value for _, value in curve] == pytest.approx([v for _, v in wanted], rel=1e-5)
    assert len(found.Tensors("poem/text_summary")) == 3
    if (folder / artefacts.LOSS_PICTURE).exists():
        assert found.Images("loss_picture")


@pytest.mark.parametrize(
    ("text", "good"), [("csv", True), ("csv, wandb", True), ("csv,excel", False)]
)
def test_config_knows_the_names(monkeypatch, text, good):
    monkeypatch.setattr(config, "LOGGER", text)
    problems = config.check()
    assert not problems if good else "'excel' 不在可选值里" in problems[0]
