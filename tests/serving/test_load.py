"""The load test in small; the whole of it is benchmarks/serve_load.py."""

import time

from benchmarks.serve_load import draw_requests, run_load


def test_no_answer_depends_on_what_else_is_asked(start):
    client = start(max_sequences=5, context_tokens=512)
    requests = [
        one for one in draw_requests(120, seed=3, most_tokens=24) if len(one.prompt.split()) < 80
    ]
    found = run_load(client, requests, at_once=8, engine="own", say=lambda _: None)
    assert found.failed == []
    assert found.different == []
    assert set(found.refused) == {"400"}
    assert found.answered > 30 and found.cancelled > 3
    assert found.is_well
    deadline = time.monotonic() + 10
    while client.read_metrics()["hybridize_answering"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert client.read_metrics()["hybridize_answering"] == 0
