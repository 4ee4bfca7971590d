"""Progress: a bar for who watches, a few lines for who reads later, nothing in outputs that are kept."""

import sys
from importlib.util import find_spec

import pytest
from jupyter_client.manager import start_new_kernel

from prunelab import paths, progress


def told(n_runs, minutes, monkeypatch, capsys):
    """What a log has of a plan that takes so long, looked at twice a minute."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress_of(n_runs) as tell:
        for half_minute in range(2 * minutes + 1):
            now[0] = 30.0 * half_minute
            tell(n_runs * half_minute / (2 * minutes))
    return capsys.readouterr().err


def test_log_of_hours_has_a_dozen_plain_lines(monkeypatch, capsys):
    first, *between, last = told(600, 150, monkeypatch, capsys).splitlines()
    assert (first, last) == ("600 runs to train", "600 of 600 runs in 2:30:00")
    assert len(between) == 10 and between[0] == "60 of 600 runs in 15:00, about 2:15:00 left"


def test_log_of_minutes_has_at_most_a_line_each(monkeypatch, capsys):
    written = told(9, 3, monkeypatch, capsys)
    assert written.count("\n") == 5 and "\r" not in written


def test_log_of_a_plan_that_fails_has_no_end(capsys):
    with pytest.raises(KeyboardInterrupt), progress.progress_of(3):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "3 runs to train\n"


def test_terminal_has_a_bar_that_is_gone_in_the_end(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.0)
    with progress.progress_of(4) as tell:
        tell(1.5)
    written = capsys.readouterr().err
    assert "0/4" in written and "1.5/4" in written and written.endswith("\r")
    with progress.progress_of(4, quiet=True) as tell:
        tell(1.5)
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def kernel():
    manager, client = start_new_kernel(extra_arguments=["--log-level=50"])
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("is_awaited", [True, False])
def test_notebook_has_a_bar_where_somebody_sits_before_it(kernel, is_awaited):
    messages = []
    code = f"""import sys; sys.path.insert(0, {str(paths.ROOT / "lib")!r})
from prunelab.progress import progress_of
with progress_of(4) as tell:
    tell(2)"""
    # As Jupyter asks for it, or as papermill, nbconvert and nbval do.
    kernel.execute_interactive(code, allow_stdin=is_awaited, output_hook=messages.append, timeout=60)
    shown = [str(message["content"]) for message in messages if message["msg_type"] in ("stream", "display_data")]
    assert any("0/4" in text for text in shown) is is_awaited and bool(shown) is is_awaited
    can_draw = find_spec("ipywidgets") is not None  # as in Colab; a bar of text elsewhere
    assert any("jupyter.widget-view" in text for text in shown) is (is_awaited and can_draw)
    assert not any("Warning" in str(message["content"]) for message in messages)
