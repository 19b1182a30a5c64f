"""位置：存进检查点再读出来是同一个；格式与早先的检查点相同。"""

from __future__ import annotations

from training.position import Best, Position

ROW = {"iter": 9, "update": 3, "val_bpc": ""}


def test_round_trip():
    here = Position(3, 700, 1.5, 1, 2, dict(ROW), Best(4.5, 6, 1))
    again = Position.from_dict(here.to_dict())
    assert again == here and again.best is not here.best
    again.pending["val_bpc"] = "4.5"
    assert here.pending == ROW  # 存下的不随后来的改动变


def test_format_of_the_checkpoint():
    names = {"update", "tokens", "seconds", "bad", "skipped", "pending"}
    names |= {"from_bpc", "old_before", "old_best"}
    saved = Position().to_dict()
    assert saved.keys() == {"position", "best"}
    assert set(saved["position"]) == names and set(saved["best"]) == {"val_bpc", "iter", "stale"}


def test_earlier_checkpoints_know_nothing_of_old_poems():
    saved = Position(update=3).to_dict()
    for name in ("from_bpc", "old_before", "old_best"):
        del saved["position"][name]
    assert Position.from_dict(saved) == Position(update=3)


def test_advance_counts_bad_updates_in_a_row():
    here = Position()
    for finite in (True, False, False):
        here.advance(tokens=10, seconds=0.5, finite=finite)
    assert (here.update, here.tokens, here.seconds) == (3, 30, 1.5)
    assert (here.bad, here.skipped) == (2, 2)
    here.advance(10, 0.5, finite=True)
    assert (here.bad, here.skipped) == (0, 2)


def test_a_pending_update_is_not_logged_yet():
    assert Position(update=3).logged == 3 and Position(update=3, pending=ROW).logged == 2
