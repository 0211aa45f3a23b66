"""TLS over a socket that never blocks: bytes in, bytes out. Knows nothing of sockets."""

import ssl


class TlsSession:
    """The client's end of one connection. After every call, ``outgoing`` is what must be sent."""

    __slots__ = ("_coded", "_incoming", "_outgoing", "ready")

    def __init__(self, context: ssl.SSLContext, hostname: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._coded = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)
        self.ready = False  # the handshake is done

    def outgoing(self) -> bytes:
        return self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        self._coded.write(data)
        return self.outgoing()

    def shake_hands(self) -> None:
        """As far as it goes. Raises ssl.SSLError."""
        try:
            self._coded.do_handshake()
        except ssl.SSLWantReadError:
            return
        self.ready = True

    def decrypt(self, data: bytes) -> bytes:
        """The plain bytes that are whole now; empty input: the connection has ended. Raises ssl.SSLError."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        if not self.ready:
            self.shake_hands()
        pieces = []
        while self.ready:
            try:
                piece = self._coded.read(65_536)
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                break
            if not piece:
                break
            pieces.append(piece)
        return b"".join(pieces)
