"""A server on this machine that breaks off, lies, redirects and stalls, as its paths say."""
import contextlib
import http.server
import re
import threading
import time


class Server:
    """content: what /good and its like hold. requests: [(path, headers)] so far."""

    def __init__(self, content):
        self.content, self.requests, self.broken = content, [], 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"  # the end of a connection ends what comes

            def do_GET(self):  # noqa: N802
                outer.requests.append((self.path, dict(self.headers)))
                with contextlib.suppress(ConnectionError):
                    getattr(outer, "on_" + re.match(r"\w+", self.path.partition("?")[0].rpartition("/")[2])[0])(self)

            def log_message(self, *arguments):
                pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def url(self, path, host="127.0.0.1"):
        return f"http://{host}:{self.port}/{path}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def send(self, handler, body, *, status=200, length=None, **headers):
        handler.send_response(status)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Type": "application/octet-stream", **headers}.items():
            handler.send_header(name, value)
        if length != "none":
            handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)

    # -- what there is ------------------------------------------------------------------------------------------------

    def on_good(self, handler, tag='"1"', cut=None, content=None):
        """Takes Range, with an ETag; cut: so many bytes and no more."""
        content = self.content if content is None else content
        found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(found[1]) if found and handler.headers.get("If-Range") in (None, tag) else 0
        if start >= len(content):
            return self.send(handler, b"", status=416, Content_Range=f"bytes */{len(content)}")
        body = content[start:]
        status = {"status": 206, "Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self.send(handler, body if cut is None else body[:cut], length=len(body), ETag=tag, **status)

    def on_breaks(self, handler):
        """Breaks off after a third of the whole, each time."""
        self.on_good(handler, cut=len(self.content) // 3 + 1)

    def on_once(self, handler):
        """Breaks off the first time, and has another file the second time."""
        self.broken += 1
        self.on_good(handler, tag=f'"{self.broken}"', cut=1000 if self.broken == 1 else None)

    def on_gone(self, handler):
        """Breaks off, and is gone then."""
        self.broken += 1
        if self.broken > 1:
            return handler.send_error(404)
        self.on_good(handler, cut=1000)

    def on_busy(self, handler):
        self.broken += 1
        if self.broken < 3:
            return handler.send_error(503)
        self.on_good(handler)

    def on_norange(self, handler):
        self.send(handler, self.content)

    def on_wrong(self, handler):
        self.send(handler, bytes(len(self.content)))

    def on_elsewhere(self, handler):
        """Answers a Range with another part."""
        self.send(handler, self.content[:9], status=206, ETag='"1"',
                  Content_Range=f"bytes 0-8/{len(self.content)}")

    def on_short(self, handler):
        self.send(handler, self.content, length=100)

    def on_long(self, handler):
        self.send(handler, self.content, length=len(self.content) + 5)

    def on_huge(self, handler):
        self.send(handler, b"", length=10 ** 15)

    def on_odd(self, handler):
        self.send(handler, self.content, length="-7")

    def on_page(self, handler):
        self.send(handler, b"<html>please log in</html>", Content_Type="text/html; charset=utf-8")

    def on_packed(self, handler):
        self.send(handler, self.content, Content_Encoding="gzip")

    def on_endless(self, handler):
        self.send(handler, b"", length="none")
        while True:
            handler.wfile.write(bytes(65536))

    def on_slow(self, handler):
        self.send(handler, b"", length=len(self.content))
        for byte in self.content:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.05)

    def on_silent(self, handler):
        self.send(handler, b"", length=len(self.content))
        time.sleep(3)

    def on_to(self, handler):
        """/to?ADDRESS redirects there."""
        handler.send_response(302)
        handler.send_header("Location", handler.path.partition("?")[2])
        handler.end_headers()

    def on_loop(self, handler):
        handler.send_response(301)
        handler.send_header("Location", "/loop")
        handler.end_headers()
