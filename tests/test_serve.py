"""serve.py：监听的地址、密钥、端口。"""

from __future__ import annotations

import pytest

import serve
from support.console import UserError


def test_open_address_needs_a_key():
    for host in ("0.0.0.0", "::", "192.168.1.5", "poem.example"):
        with pytest.raises(UserError, match="API_KEY"):
            serve.check_address(host, "")
        serve.check_address(host, "key")
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        serve.check_address(host, "")


def test_busy_port_is_explained():
    with serve.listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(UserError, match="--PORT="):
            serve.listen("127.0.0.1", port)
