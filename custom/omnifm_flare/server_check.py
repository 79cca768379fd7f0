"""Check that a hospital reaches the server that its kit names."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from omnifm.preflight import Doubt
from omnifm_flare.kit_files import objects, read

MAX_SKEW_S = 300
"""Largest difference, in seconds, between this clock and the server's."""
TIMEOUT_S = 10.0
"""Seconds to wait for the server."""


@dataclass(frozen=True)
class Server:
    """The server that a kit names."""

    identity: str
    """The name in its certificate."""
    address: tuple[str, int]
    """Host and port."""
    has_clock: bool
    """Whether it speaks HTTP, which tells the time."""

    def __str__(self) -> str:
        """Host and port as in a URL."""
        return f"{self.address[0]}:{self.address[1]}"


def read_server(startup: Path) -> Server:
    """Read fed_client.json; raises ValueError if it does not name a server with mutual TLS."""
    config = read(startup, "fed_client.json")
    client = config.get("client")
    security = client.get("connection_security") if isinstance(client, dict) else None
    if security != "mtls":
        raise ValueError(f"connection_security in fed_client.json must be 'mtls'; got {security!r}")
    for entry in objects(config.get("servers")):
        service = entry.get("service")
        if isinstance(service, dict):
            host, _, port = str(service.get("target")).rpartition(":")
            if host and port.isdecimal():
                has_clock = service.get("scheme") in ("http", "https")
                return Server(str(entry.get("identity")), (host, int(port)), has_clock)
    raise ValueError("fed_client.json must name a server and its target as host:port; it does not")


def server(startup: Path) -> str:
    """Connect to the server's port as this hospital, check the server's name, and compare clocks."""
    expected = read_server(startup)
    address = str(expected)
    peer, server_time = _connect(expected, startup)
    if (name := common_name(peer.subject)) != expected.identity:
        raise ValueError(f"the server at {address} must be {expected.identity}; its certificate says {name}")
    if server_time is None:
        raise Doubt(f"{name} at {address}; it told no time, so the clocks were not compared")
    skew_s = (datetime.now(UTC) - server_time).total_seconds()
    if abs(skew_s) > MAX_SKEW_S:
        raise ValueError(
            f"clocks must be within {MAX_SKEW_S} s of each other; this one is {skew_s:.0f} s ahead of the server's: "
            "set this machine's clock"
        )
    return f"{name} at {address}, clocks {abs(skew_s):.0f} s apart"


def _connect(expected: Server, startup: Path) -> tuple[x509.Certificate, datetime | None]:
    """Connect; return the certificate of the other end, and its time if it tells the time."""
    address = str(expected)
    context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
    context.check_hostname = False  # as in FLARE: the name in the certificate is compared instead, by the caller
    context.load_cert_chain(startup / "client.crt", startup / "client.key")
    try:
        with socket.create_connection(expected.address, TIMEOUT_S) as plain, context.wrap_socket(plain) as tls:
            peer = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
            return peer, _ask_time(tls) if expected.has_clock else None
    except ssl.SSLError as error:
        raise ValueError(
            f"{address} must speak TLS with this consortium's certificates; it does not ({error.reason}): "
            "are both kits of the same provisioning, and is it the server that answers at this port?"
        ) from None
    except OSError as error:
        words = error.strerror or "no answer"
        raise ValueError(
            f"{address} must be reachable from here; {words}: is the server started? does the firewall let it through?"
        ) from None


def _ask_time(tls: ssl.SSLSocket) -> datetime | None:
    """Ask for a page that does not exist; the header of the answer holds the server's time."""
    tls.sendall(b"GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")
    for line in tls.recv(4096).decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        if name.lower() == "date":
            return parsedate_to_datetime(value.strip())
    return None


def common_name(subject: x509.Name) -> str:
    """The name in a certificate's subject."""
    return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
