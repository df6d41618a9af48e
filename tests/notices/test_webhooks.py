"""Notices reach webhooks: signed, at least once with the same id, for days, and nowhere they must not go."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.ledger.conftest import postgresql, schema_url, url  # noqa: F401 - fixtures
from token_meter.bookkeeping.lazy import LazyRater
from token_meter.bookkeeping.notice_rows import write_notice
from token_meter.errors import InvalidEndpoint
from token_meter.ledger import Ledger
from token_meter.notices.desk import NoticeDesk
from token_meter.notices.postman import WAITS_SECONDS, Postman

DAY = 86_400


class Receiver:
    """A receiver on this machine that verifies with the Standard Webhooks library."""

    def __init__(self):
        self.status = 200
        self.location = None
        self.secret = ""
        self.bodies, self.ids, self.wrong = [], [], []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    # It checks the time as well: the clock of the tests is set back to ours.
                    receiver.bodies.append(Webhook(receiver.secret).verify(body, dict(self.headers)))
                except WebhookVerificationError as problem:
                    receiver.wrong.append(str(problem))
                receiver.ids.append(self.headers["webhook-id"])
                self.send_response(receiver.status)
                if receiver.location:
                    self.send_header("Location", receiver.location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hooks"


@contextmanager
def receiving():
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()


@pytest.fixture
def receiver():
    with receiving() as made:
        yield made


class Clock:
    def __init__(self):
        import time

        self.now = time.time()

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(url):  # noqa: F811 - a fixture
    with Ledger(url, rater=LazyRater()) as made:
        yield made


@pytest.fixture
def desk(ledger, clock):
    return NoticeDesk(ledger, now=clock)


def tell(ledger, number, kind="budget.threshold"):
    with ledger.writing() as (store, connection):
        write_notice(store, connection, kind, f"{kind}|{number}", {"percent": number}, customer="acme")


def rounds(ledger, clock, *, send=None):
    postman = Postman(ledger, now=clock, **({"send": send} if send else {}))
    total = 0
    while done := postman.turn():
        total += done
    return total


def test_a_receiver_with_the_standard_library_takes_a_notice(ledger, desk, clock, receiver):
    tell(ledger, 1)  # before the endpoint was there
    endpoint, receiver.secret = desk.add(receiver.url, private=True)
    tell(ledger, 50)

    assert rounds(ledger, clock) == 1
    assert rounds(ledger, clock) == 0

    [body] = receiver.bodies
    assert (body["type"], body["data"]["percent"], body["data"]["customer"]) == ("budget.threshold", 50, "acme")
    assert body["data"]["key"] == "budget.threshold|50"
    assert receiver.wrong == [] and receiver.ids[0].startswith("ntc_")
    assert desk.standing() == {endpoint.id: {"done": 1}}


def test_only_the_kinds_that_an_endpoint_wants_are_posted(ledger, desk, clock, receiver):
    _, receiver.secret = desk.add(receiver.url, kinds=["budget.*"], private=True)
    tell(ledger, 1, "credit.low")
    tell(ledger, 2, "budget.exceeded")

    rounds(ledger, clock)

    assert [body["type"] for body in receiver.bodies] == ["budget.exceeded"]


def test_what_is_not_taken_is_posted_again_for_days_with_the_same_id(ledger, desk, clock, receiver):
    endpoint, receiver.secret = desk.add(receiver.url, private=True)
    tell(ledger, 50)
    receiver.status = 500
    tried, began = rounds(ledger, clock), clock.now

    while desk.standing()[endpoint.id].get("waiting"):
        clock.now += 1800
        if clock.now - began > 30:  # the receiver's library refuses what is older than five minutes
            receiver.wrong.clear()
        tried += rounds(ledger, clock)

    assert tried == len(WAITS_SECONDS) + 1
    assert len(set(receiver.ids)) == 1
    assert 3 * DAY < clock.now - began < 5 * DAY
    assert desk.standing() == {endpoint.id: {"failed": 1}}
    assert desk.get(endpoint.id).document()["state"] == "failing"

    receiver.status, receiver.secret = 200, receiver.secret
    assert desk.replay(endpoint.id, failed_only=True) == 1
    rounds(ledger, clock)
    assert desk.standing() == {endpoint.id: {"done": 1}}
    assert len(set(receiver.ids)) == 1


def test_an_endpoint_that_nothing_reaches_for_days_is_disabled_loudly(ledger, desk, clock, caplog):
    endpoint, _ = desk.add("http://127.0.0.1:9/none", private=True)
    for day in range(8):
        tell(ledger, day)
        rounds(ledger, clock)
        clock.now += DAY

    found = desk.get(endpoint.id)
    assert found.disabled is not None and "Refused" in (found.reason or "")
    [told] = desk.list(kind="webhook.disabled")
    assert told["document"]["url"] == endpoint.url and "notices enable" in told["document"]["what_now"]
    assert "is disabled" in caplog.text

    tell(ledger, 99)
    assert rounds(ledger, clock) == 0
    assert desk.enable(endpoint.id).disabled is None
    assert rounds(ledger, clock) > 0


def test_an_endpoint_that_says_it_is_gone_is_disabled_at_once(ledger, desk, clock, receiver):
    endpoint, receiver.secret = desk.add(receiver.url, private=True)
    receiver.status = 410
    tell(ledger, 1)

    rounds(ledger, clock)

    assert desk.get(endpoint.id).disabled is not None


def test_a_private_address_is_refused_before_anything_is_sent(ledger, desk, clock, receiver):
    endpoint, _ = desk.add(receiver.url)
    named, _ = desk.add(receiver.url.replace("127.0.0.1", "localhost"))
    tell(ledger, 1)

    rounds(ledger, clock)

    assert receiver.ids == []
    for each in (endpoint, named):
        assert "is a private address" in (desk.get(each.id).reason or "")


def test_a_redirect_is_not_followed(ledger, desk, clock, receiver):
    with receiving() as elsewhere:
        endpoint, receiver.secret = desk.add(receiver.url, private=True)
        receiver.status, receiver.location = 302, elsewhere.url
        tell(ledger, 1)

        rounds(ledger, clock)

        assert elsewhere.ids == []
    assert "redirect" in (desk.get(endpoint.id).reason or "")


def test_after_a_rotation_both_secrets_sign_for_a_while(ledger, desk, clock, receiver):
    endpoint, old = desk.add(receiver.url, private=True)
    new = desk.rotate(endpoint.id)
    assert old != new
    for secret in (old, new):
        receiver.secret = secret
        tell(ledger, secret)
        rounds(ledger, clock)
    assert len(receiver.bodies) == 2 and receiver.wrong == []

    desk.rotate(endpoint.id, overlap_seconds=0)
    tell(ledger, "later")
    rounds(ledger, clock)
    assert len(receiver.wrong) == 1


def test_two_postmen_post_each_notice_once(ledger, desk, clock, receiver, url):  # noqa: F811 - a fixture
    _, receiver.secret = desk.add(receiver.url, private=True)
    for number in range(60):
        tell(ledger, number)
    with Ledger(url) as other:
        threads = [threading.Thread(target=rounds, args=(each, clock)) for each in (ledger, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert sorted(body["data"]["percent"] for body in receiver.bodies) == list(range(60))


def test_a_postman_that_dies_leaves_its_notices_to_the_next(ledger, desk, clock, receiver):
    _, receiver.secret = desk.add(receiver.url, private=True)
    tell(ledger, 1)

    def dies(*arguments, **named):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Postman(ledger, now=clock, send=dies).turn()
    assert rounds(ledger, clock) == 0  # claimed for a minute
    clock.now += 61

    assert rounds(ledger, clock) == 1
    assert [body["data"]["percent"] for body in receiver.bodies] == [1]


@pytest.mark.parametrize("wrong", ["ftp://x/y", "no address", "https://user:secret@example.com/", "http://"])
def test_what_is_no_address_is_refused(desk, wrong):
    with pytest.raises(InvalidEndpoint):
        desk.add(wrong)


def test_a_secret_of_ones_own_has_to_be_one(desk):
    with pytest.raises(InvalidEndpoint, match="24 to 64 bytes"):
        desk.add("https://example.com/", secret="whsec_c2hvcnQ=")


def test_secrets_are_shown_once_and_never_again(desk):
    endpoint, secret = desk.add("https://example.com/")

    assert secret not in json.dumps(desk.get(endpoint.id).document())
