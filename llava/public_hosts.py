"""Connections to hosts of the public internet alone, for URLs that strangers write.

The addresses that a name leads to are looked up once, and what was looked at is what is connected to.
"""

import ipaddress
import socket
import ssl
import urllib.request
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection

from llava.errors import DataError

PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")  # what is given out; NAT64, IPv4 within IPv6 and all else lie outside
TUNNELS = (ipaddress.ip_network("2002::/16"), ipaddress.ip_network("2001::/23"))  # IPv4 addresses lie in these, too


class PublicHandler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """For urllib's openers: http and https to public addresses. Raises DataError for any other."""

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        """What answers there."""
        return self.do_open(_Connection, request)

    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        """What answers there."""
        return self.do_open(_SecureConnection, request)


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet: no private network, no loopback, no link of this machine."""
    place = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(place, ipaddress.IPv6Address):
        return place.is_global and place in PUBLIC_IPV6 and not any(place in tunnel for tunnel in TUNNELS)
    return place.is_global and not place.is_multicast


class _Connection(HTTPConnection):
    def connect(self) -> None:
        self.sock = _connected(self.host, self.port, self.timeout)


class _SecureConnection(HTTPSConnection):
    def connect(self) -> None:
        plain = _connected(self.host, self.port, self.timeout)
        self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


def _connected(host: str, port: int, seconds: float | None) -> socket.socket:
    """A connection to the first of the host's addresses that takes one; none of them may be private."""
    addresses = [place[0] for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if private := [address for address in addresses if not is_public(address)]:
        raise DataError(f"{host} is refused: {private[0]} is no public address")
    failure = OSError(f"{host} has no address")
    for address in dict.fromkeys(addresses):
        try:
            return socket.create_connection((address, port), seconds)
        except OSError as error:
            failure = error
    raise failure
