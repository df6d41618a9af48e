"""Notices reach webhooks: signed, at least once with the same id, for days, and nowhere they must not go."""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
import time
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
from token_meter.notices.post import Answered, is_public, post
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
    assert desk.get(endpoint.id).document()["state"] == "disabled"

    receiver.status = 200
    desk.enable(endpoint.id)
    assert rounds(ledger, clock) == 2  # it, and that the endpoint was disabled
    assert desk.standing() == {endpoint.id: {"done": 2}}
    assert len(set(receiver.ids)) == 2
    assert desk.replay(endpoint.id) == 2


def test_an_endpoint_that_nothing_reaches_for_days_is_disabled_loudly(ledger, desk, clock, caplog):
    endpoint, _ = desk.add("http://127.0.0.1:9/none", private=True)
    for day in range(8):
        tell(ledger, day)
        rounds(ledger, clock)
        clock.now += DAY

    found = desk.get(endpoint.id)
    assert found.disabled is not None and "Refused" in (found.reason or "")
    [told] = desk.list(kind="webhook.disabled")
    assert told["document"]["host"] == "http://127.0.0.1:9" and "notices enable" in told["document"]["what_now"]
    assert "none" not in json.dumps(told) + caplog.text, "what may be secret in an address is nobody else's to read"
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


class Raw:
    """A receiver that answers with bytes of its own, as often as it is asked."""

    def __init__(self, *answers, drip=0.0):
        self.asked = 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}/hooks"
        self.answers, self.drip = answers, drip
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            with connection:
                self.asked += 1
                connection.recv(65536)
                try:
                    for piece in self.answers:
                        connection.sendall(piece)
                        while self.drip:
                            connection.sendall(b"x")
                            time.sleep(self.drip)
                except OSError:
                    continue

    def close(self):
        self.server.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self.server.close()
        self.thread.join(5)


@pytest.fixture
def raw():
    made = []

    def make(*answers, **more):
        made.append(Raw(*answers, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 \r\nRetry-After: \xb2\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok\x00!",
        b"\x00\x01garbage\r\n\r\n",
        b"HTTP/1.1 500 x\r\nContent-Length: 9\r\n\r\n\x1b[31m\nred",
        b"",
    ],
)
def test_whatever_one_receiver_says_the_others_get_theirs(ledger, desk, clock, receiver, raw, answer):
    bad = raw(answer)
    desk.add(bad.url, private=True)
    _, receiver.secret = desk.add(receiver.url, private=True)
    for number in range(3):
        tell(ledger, number)

    rounds(ledger, clock)
    clock.now += 61
    rounds(ledger, clock)

    assert len(receiver.bodies) == 3 and bad.asked > 0
    [said, _] = [each.reason or "" for each in desk.endpoints()]
    assert said.isprintable()


@pytest.mark.parametrize("first", [b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"])
def test_a_receiver_that_talks_slowly_is_cut_off(raw, monkeypatch, first):
    """A byte now and then: no timeout of a socket ever strikes."""
    monkeypatch.setattr("token_meter.notices.post.DEADLINE_SECONDS", 0.5)

    answer = post(raw(first, drip=0.05).url, b"{}", {}, private=True)

    assert (answer.ok, answer.status) == (False, 0) or len(answer.text) < 100
    assert answer.status == 200 or "did not answer within" in answer.text


@pytest.mark.parametrize("address", [
    "127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "192.0.0.8", "240.0.0.1", "100.64.0.1",
    "::1", "::", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "::127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:db8::1",
])  # fmt: skip
def test_what_leads_into_a_private_network_is_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822", "::ffff:93.184.216.34"]
)
def test_what_is_somebody_elses_is_public(address):
    assert is_public(ipaddress.ip_address(address))


def test_an_endpoint_that_fails_delays_no_other(ledger, desk, clock):
    """A hundred notices wait for one that times out: the other one gets its own all the same."""
    desk.add("https://slow.example.com/")
    desk.add("https://good.example.com/")
    for number in range(100):
        tell(ledger, number)
    tried = []

    def send(place, body, headers, *, private):
        tried.append(place)
        return Answered(0, "timed out") if "slow" in place else Answered(200, "")

    rounds(ledger, clock, send=send)

    assert tried.count("https://good.example.com/") == 100
    assert tried.count("https://slow.example.com/") == 1
    clock.now += 7
    rounds(ledger, clock, send=send)
    assert tried.count("https://slow.example.com/") == 2


def test_who_comes_after_a_claim_has_expired_knows_better(ledger, desk, clock):
    """A batch that took too long must not take back what another process has done."""
    endpoint, _ = desk.add("https://example.com/")
    tell(ledger, 1)

    def slow(place, body, headers, *, private):
        clock.now += 61
        assert rounds(ledger, clock, send=lambda *_, **__: Answered(200, "")) == 1
        return Answered(500, "too late")

    rounds(ledger, clock, send=slow)

    assert desk.standing() == {endpoint.id: {"done": 1}}


def test_one_that_is_gone_is_told_once_and_asked_no_more(ledger, desk, clock):
    desk.add("https://example.com/hooks?token=secret")
    other, _ = desk.add("https://other.example.com/")
    for number in range(30):
        tell(ledger, number)
    told = []

    def send(place, body, headers, *, private):
        told.append((place, body))
        return Answered(410, "") if "token" in place else Answered(200, "")

    rounds(ledger, clock, send=send)

    assert len([place for place, _ in told if "token" in place]) == 1
    assert len(desk.list(kind="webhook.disabled")) == 1
    assert not any(b"secret" in body for _, body in told)
    assert desk.standing()[other.id] == {"done": 31}


def test_two_that_rotate_at_once_both_have_a_secret_that_signs(ledger, desk, clock):
    endpoint, old = desk.add("https://example.com/")
    made = []
    threads = [threading.Thread(target=lambda: made.append(desk.rotate(endpoint.id))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(desk.get(endpoint.id).signing(int(clock() * 1e6))) == {old, *made}
    desk.rotate(endpoint.id)
    desk.rotate(endpoint.id)
    with pytest.raises(InvalidEndpoint, match="5 secrets sign already"):
        desk.rotate(endpoint.id)


def test_a_notice_that_is_committed_late_is_delivered_too(schema_url, clock, receiver):  # noqa: F811 - a fixture
    """Its number is lower than one that an endpoint began behind. (SQLite has one writer at a time.)"""
    with Ledger(schema_url, rater=LazyRater()) as ledger:
        _late(ledger, NoticeDesk(ledger, now=clock), clock, receiver)


def _late(ledger, desk, clock, receiver):
    tell(ledger, 0)
    with ledger.reading() as (store, _):
        late = store.engine.connect()
    with late, late.begin():
        write_notice(store, late, "budget.threshold", "late", {"percent": 1})
        tell(ledger, 2)
        _, receiver.secret = desk.add(receiver.url, private=True)

    rounds(ledger, clock)

    assert [body["data"]["key"] for body in receiver.bodies] == ["late"]


def test_what_was_delivered_long_ago_is_forgotten(ledger, desk, clock, receiver):
    endpoint, receiver.secret = desk.add(receiver.url, kinds=["budget.threshold"], private=True)
    tell(ledger, 1)
    tell(ledger, 2, "credit.low")
    rounds(ledger, clock)
    clock.now += 31 * DAY

    assert rounds(ledger, clock) == 0

    assert desk.standing() == {} and len(receiver.bodies) == 1
    assert desk.get(endpoint.id).began == 2


@pytest.mark.parametrize("wrong", [
    "http://[::1/", "http://h:99999/", "http://h:abc/", "http://exa mple.com/", "http://..../", "http://:@h/", "http://h:0/",
])  # fmt: skip
def test_what_could_never_be_posted_is_refused(desk, wrong):
    with pytest.raises(InvalidEndpoint):
        desk.add(wrong)


@pytest.mark.parametrize(
    "right", ["https://example.com/hooks", "http://[::1]:8080/x", "https://bücher.example/x", "http://h_1:80/"]
)
def test_addresses_of_all_kinds_are_taken(desk, right):
    assert desk.add(right)[0].url == right
