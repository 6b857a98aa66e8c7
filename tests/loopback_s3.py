"""S3 on loopback: moto's server as a process that a test can kill and start again, empty."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec


class LoopbackS3:
    """A server at ``url``."""

    def __init__(self, bucket="images"):
        self.bucket = bucket
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def environment(self):
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
        once = {"AWS_MAX_ATTEMPTS": "1"}  # botocore's own tries take a while
        return once | {"AWS_ENDPOINT_URL": self.url} | dict.fromkeys(keys, "us-east-1")

    def start(self, folder: Path):
        """Serves the files of a folder in the bucket."""
        command = [sys.executable, "-m", "moto.server", "-p", str(self.port)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, **quiet, env={**os.environ})
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir(self.bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                system.pipe(f"{self.bucket}/{path.relative_to(folder)}", path.read_bytes())

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
