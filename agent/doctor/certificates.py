"""Certificates of the configuration: are they valid, for how much longer, and does ours belong to its key; and for how
much longer the one is valid that a server shows.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent import tls
from agent.control.status_text import age
from agent.doctor.certificate import Validity, validities, validity
from agent.doctor.finding import Finding, fault, ok, warning
from agent.errors import SecretError
from agent.tls import Tls

SOON = 30 * 86_400.0  # s
_LARGEST = 4 << 20  # bytes; the system's own bundle has a quarter of that


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """``what``: such as "channel dso: tls: ca"; ``where``: file or server. ``valid``: of each certificate there, what
    it says; ``trouble``: why it could not be read, or does not fit. ``any_will_do``: one of them is enough.
    """

    what: str
    where: str
    valid: tuple[Validity, ...] = ()
    trouble: str = ""
    any_will_do: bool = False


def look(what: str, table: Tls) -> Iterator[CertificateFacts]:
    """The files of a table. Blocks. Raises PermissionError."""
    for name, path in (("ca", table.ca), ("cert", table.cert)):
        if path is not None:
            yield _file(f"{what}: {name}", path, any_will_do=name == "ca")
    if table.cert is not None and table.key is not None:
        trouble = ""
        try:
            table.context()
        except PermissionError:
            raise
        except (OSError, SecretError) as error:
            trouble = str(error) if isinstance(error, SecretError) else tls.reason(error, peer="the server")
        yield CertificateFacts(f"{what}: key", f"{table.key}", trouble=trouble)


def _file(what: str, path: Path, *, any_will_do: bool) -> CertificateFacts:
    try:
        with path.open("rb") as file:
            found = tuple(validities(file.read(_LARGEST)))
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        return CertificateFacts(what, str(path), trouble=str(words))
    return CertificateFacts(what, str(path), found, any_will_do=any_will_do)


def shown(what: str, where: str, der: bytes) -> CertificateFacts:
    """The one that a server showed."""
    try:
        return CertificateFacts(what, where, (validity(der),))
    except ValueError as error:
        return CertificateFacts(what, where, trouble=str(error))


def dial(what: str, *, host: str, port: int, table: Tls, within: float = 5.0) -> CertificateFacts | None:
    """What a server shows that speaks TLS at once; None if that could not be seen, which trying the server tells
    better. Blocks.
    """
    with suppress(OSError, SecretError, ValueError), socket.create_connection((host, port), timeout=within) as plain:
        with table.context().wrap_socket(plain, server_hostname=table.server_name or host) as secure:
            der = secure.getpeercert(binary_form=True)
        return None if der is None else shown(what, f"{host}:{port}", der)
    return None


def judge(facts: CertificateFacts, now: float) -> Iterator[Finding]:
    """What is to be said of one place; ``now`` in s since 1970."""
    about, at = facts.what, facts.where
    if facts.trouble:
        why = "no connection is made with it"
        remedy = "put the file there that belongs to it: PEM, and a key that is the certificate's"
        yield fault(about, f"{at}: {facts.trouble}", why=why, remedy=remedy, looked_at=at)
        return
    if not facts.valid:
        return
    pick = max if facts.any_will_do else min
    last = pick(each.ends for each in facts.valid)
    first = (min if facts.any_will_do else max)(each.begins for each in facts.valid)
    day = datetime.fromtimestamp(last, UTC).strftime("%Y-%m-%d")
    renew = "have a new one made; it is taken up at the next connection"
    if first > now:
        why = "the other end's is refused, or ours by the other end"
        remedy = "is this machine's clock right?"
        since = datetime.fromtimestamp(first, UTC).strftime("%Y-%m-%d")
        yield fault(about, f"{at} is valid from {since} only", why=why, remedy=remedy, looked_at=at)
    elif last <= now:
        why = "no new connection is made with it"
        yield fault(about, f"{at} expired on {day}", why=why, remedy=renew, looked_at=at)
    elif last - now < SOON:
        why = "then no new connection is made"
        found = f"{at} expires on {day}, in {age(last - now)}"
        yield warning(about, found, why=why, remedy=renew, looked_at=at)
    else:
        yield ok(about, f"{at} is valid until {day}", looked_at=at)
