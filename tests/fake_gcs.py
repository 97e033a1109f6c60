"""Google Cloud Storage in memory, as much of it as TensorFlow and array_record ask for.

array_record can be sent to any address; TensorFlow knows Google's alone, so it is sent through a
proxy that answers in their place, under a certificate of its own.
"""

import json
import re
import shutil
import ssl
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOSTS = ("www.googleapis.com", "storage.googleapis.com")
AVAILABLE = shutil.which("openssl") is not None  # which makes the certificate


class Server(ThreadingHTTPServer):
    """A storage.

    Attributes:
      objects: (bucket, name) -> content, in the order of their writing.
      log: keys of what has been written.
      puts_left: how many objects are taken before all others are refused; None: any number.
      denied: whether everything is refused.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("localhost", 0), _Handler)
        self.objects: dict[tuple[str, str], bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.puts_left: int | None = None
        self.uploads: dict[str, tuple[str, str]] = {}
        self.denied = False
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        names = ",".join(f"DNS:{host}" for host in HOSTS)
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        options = ("-keyout", key, "-out", certificate, "-subj", "/CN=fake")
        subprocess.run(
            [*command.split(), *options, "-addext", f"subjectAltName={names}"],
            check=True,
            capture_output=True,
        )
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate, key)
        self.environment = {
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": f"http://localhost:{self.server_port}",
            "https_proxy": f"http://localhost:{self.server_port}",
            "CURL_CA_BUNDLE": str(certificate),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        }

    def handle_error(self, request, client_address):
        """Says nothing of connections that the other side ends."""


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Runs a server; a process reaches it with the variables of its `environment`."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def finish(self):
        super().finish()
        self.connection.close()  # its encrypted form, which the server knows nothing of

    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def do_GET(self):
        path, query = self._asked()
        if self.server.denied:
            return self._answer(403, b"denied")
        if match := re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)", path):
            key = match[1], urllib.parse.unquote(match[2])
            return self._object(key, media=query.get("alt") == "media")
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            return self._list(match[1], query)
        bucket, _, name = path[1:].partition("/")
        return self._object((bucket, urllib.parse.unquote(name)), media=True)

    def do_POST(self):
        path, query = self._asked()
        body = self._body()
        if self.server.denied:
            return self._answer(403, b"denied")
        bucket = re.match(r"/upload/storage/v1/b/([^/]+)/o", path)[1]
        key = bucket, query["name"]
        if query["uploadType"] == "media":
            self.server.objects[key] = body
            return self._answer(200, b"{}")
        self.server.uploads[name := f"upload{len(self.server.uploads)}"] = key
        where = f"https://www.googleapis.com/session/{name}"
        return self._answer(200, b"", {"Location": where})

    def do_PUT(self):
        path, _ = self._asked()
        body, server = self._body(), self.server
        if server.puts_left == 0:
            return self._answer(403, b"denied")
        if server.puts_left is not None:
            server.puts_left -= 1
        key = server.uploads[path.split("/")[-1]]
        server.objects[key] = body
        server.log.append(key)
        return self._answer(200, b"{}")

    def do_DELETE(self):
        path, _ = self._asked()
        bucket, name = re.fullmatch(r"/storage/v1/b/([^/]+)/o/(.+)", path).groups()
        gone = self.server.objects.pop((bucket, urllib.parse.unquote(name)), None)
        self._answer(404 if gone is None else 204, b"")

    def _asked(self):
        url = urllib.parse.urlsplit(self.path)
        return url.path, dict(urllib.parse.parse_qsl(url.query))

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _object(self, key, media):
        data = self.server.objects.get(key)
        if data is None:
            return self._answer(404, b"{}")
        if media:
            span = re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-"))
            if span[1]:
                part = slice(int(span[1]), int(span[2]) + 1 if span[2] else None)
            else:
                part = slice(-int(span[2]), None)
            first, last, _ = part.indices(len(data))
            if first >= last:
                return self._answer(416, b"")
            told = {"Content-Range": f"bytes {first}-{last - 1}/{len(data)}"}
            return self._answer(206, data[part], told | {"x-goog-generation": "1"})
        bucket, name = key
        about = {"name": name, "bucket": bucket, "size": str(len(data)), "generation": "1"}
        return self._answer(200, json.dumps(about | {"updated": "2024-01-01T00:00:00Z"}).encode())

    def _list(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        names, folders = [], {}
        for name in sorted(n for b, n in self.server.objects if b == bucket):
            if name.startswith(prefix):
                head, mark, _ = name[len(prefix) :].partition(delimiter or "\0")
                if mark:
                    folders[f"{prefix}{head}{mark}"] = None
                else:
                    names.append({"name": name})
        answer = {"items": names[: int(query.get("maxResults", 10**6))], "prefixes": [*folders]}
        return self._answer(200, json.dumps({k: v for k, v in answer.items() if v}).encode())

    def _answer(self, code, data, headers=None):
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
