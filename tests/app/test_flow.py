"""The steps of the page, with a worker that is told what to answer."""

from __future__ import annotations

import pytest

from retune.app.desk import Desks
from retune.app.events import Event
from retune.app.flow import Flow
from retune.app.settings import Settings
from retune.app.worker import Limits, StoppedError
from retune.errors import InvalidParameterError

LOOKED = {
    "said": "0.1", "pages": 1, "holes": False, "plain": True, "size": [20, 30], "facts": "<p>a.png</p>",
    "picture": "data:", "noise": "<p>noise</p>", "blur": "",
}  # fmt: skip
FOUND = {"findings": "<p>fine</p>", "mends": [{"key": "centre", "label": "Centre"}]}


class Worker:
    def __init__(self):
        self.asked, self.answers, self.stopped = [], {}, []

    def run(self, owner, request):
        self.asked.append((owner, request))
        for event in self.answers[request.kind]:
            if isinstance(event, Exception):
                raise event
            yield event

    def stop(self, owner):
        self.stopped.append(owner)
        return True


@pytest.fixture
def flow():
    desks = Desks()
    made = Flow(desks, Worker(), Limits())
    made.worker.answers["look"] = [Event("step", LOOKED), Event("done", LOOKED | FOUND)]
    yield made
    desks.remove()


@pytest.fixture
def desk(flow):
    desk = flow.desks.open()
    desk.image = "a.png"
    (desk.folder / "a.png").touch()
    return desk


def result(desk):
    (desk.folder / "restored").mkdir(exist_ok=True)
    (desk.folder / "restored" / "a.png").touch()


def test_the_findings_come_after_the_noise(flow, desk):
    first, second = flow.look(desk, 0, Settings())
    assert "Examining" in first["findings"]
    assert first["noise"] == LOOKED["noise"]
    assert "As it was measured" in first["glimpse"]
    assert second["findings"] == FOUND["findings"]
    assert second["mends"] == ["centre"]


def test_an_image_is_looked_at_once_for_the_same_settings(flow, desk):
    list(flow.look(desk, 0, Settings()))
    assert list(flow.look(desk, 0, Settings())) == [{}]
    assert len(list(flow.look(desk, 0, Settings("superres")))) == 3  # the old result goes first


def test_another_page_of_a_stack_that_was_restored_is_drawn(flow, desk):
    list(flow.look(desk, 0, Settings()))
    flow.worker.answers["restore"] = [Event("done", {"result": "<p>first", "solves": [{"layers": [5]}]})]
    list(flow.restore(desk, 0, Settings()))
    result(desk)
    flow.worker.answers["turn"] = [Event("done", {"result": "<p>second"})]
    told = list(flow.look(desk, 1, Settings()))
    assert "Drawing page 2" in told[-2]["progress"]
    assert told[-1] == {"progress": "", "result": "<p>second"}
    options = flow.worker.asked[-1][1].options
    assert (options["page"], options["tuned"], options["solves"]) == (1, False, [{"layers": [5]}])
    assert options["settings"].noise == "0.1"  # of the restoration, not of the second page
    flow.worker.asked.clear()
    gone, first, _ = flow.look(desk, 1, Settings("superres"))  # the results are of other settings
    assert gone["result"] == ""
    assert "As it was measured" in first["glimpse"]
    assert desk.results() == {}
    assert [request.kind for _, request in flow.worker.asked] == ["look"]


def test_an_image_arrives(flow):
    desk = flow.desks.open()
    token, path = flow.desks.keep("b.png")
    path.touch()
    shown = list(flow.image(desk, token, Settings()))
    assert desk.image == "b.png"
    assert shown[0]["result"] == ""
    assert shown[-1]["facts"] == LOOKED["facts"]


def test_the_noise_that_was_estimated_is_said_in_the_command(flow, desk):
    list(flow.look(desk, 0, Settings()))
    flow.worker.answers["restore"] = [
        Event("step", {"say": "Layer 5", "curves": "<svg>"}),
        Event("done", {"result": "<p>"}),
    ]
    steps = flow.restore(desk, 0, Settings())
    assert next(steps)["running"]
    assert "Layer 5" in next(steps)["progress"]
    result(desk)
    told = list(steps)
    assert "--sigma 0.1 " in told[-1]["take"]
    assert f'href="take/{desk.key}/a.png"' in told[-1]["take"]
    assert flow.worker.asked[-1][1].options["settings"].noise == "0.1"
    assert not told[-1]["running"]


@pytest.mark.parametrize(
    "answer", [Event("failed", {"why": "it is <broken>"}), StoppedError("it is <broken>")], ids=["failed", "stopped"]
)
def test_a_failure_is_a_sentence_and_the_buttons_come_back(flow, desk, answer):
    flow.worker.answers["restore"] = [answer]
    (*_, last) = flow.restore(desk, 0, Settings())
    assert "it is &lt;broken&gt;" in last["progress"]
    assert not last["running"]


def test_what_waits_can_be_stopped(flow, desk):
    assert flow.waits(desk)["running"]
    flow.stop(desk.key)
    (only,) = flow.restore(desk, 0, Settings())
    assert "Stopped" in only["progress"]
    assert flow.worker.asked == []
    flow.waits(desk)  # asked for again
    flow.worker.answers["restore"] = [Event("done", {"result": ""})]
    assert len(list(flow.restore(desk, 0, Settings()))) == 2


def test_a_file_of_the_machine_is_not_read(flow, desk):
    (*_, last) = flow.restore(desk, 0, Settings("deblur", kernel="/etc/secret.png"))
    assert "neither a choice" in last["progress"]
    assert flow.worker.asked == []


def test_strokes_are_taken_and_counted(flow, desk):
    with pytest.raises(InvalidParameterError, match="Choose an image"):
        flow.paint(desk, [{"radius": 0.1, "points": [[0, 0]]}])
    list(flow.look(desk, 0, Settings()))
    flow.worker.answers["paint"] = [Event("done", {"mask": "mask.png"})]
    flow.paint(desk, [{"radius": 0.1, "points": [[0, 0]]}])
    assert desk.mask == "mask.png"
    assert flow.worker.asked[-1][1].options["size"] == [20, 30]
    for strokes, message in (([], "Nothing was drawn"), ([{"radius": 0.1, "points": [[0, 0]] * 200_000}], "too many")):
        with pytest.raises(InvalidParameterError, match=message):
            flow.paint(desk, strokes)


def test_a_page_that_is_closed_leaves_nothing(flow, desk):
    flow.leave(desk.key)
    assert flow.worker.stopped == [desk.key]
    assert not desk.folder.exists()
