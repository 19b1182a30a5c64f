"""在空闲的回环端口上跑真的 uvicorn，供接口与页面的测试用。"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import serve

DEFAULTS = {"temperature": 0.7, "top_k": 20, "top_p": 1.0, "max_new_tokens": 400}


def service(engine, folder, limit: int = 8, key: str = "") -> serve.Service:
    return serve.Service(lambda: engine, str(folder), dict(DEFAULTS), limit, key)


@contextlib.contextmanager
def running(the_service: serve.Service):
    """给出 http://127.0.0.1:端口；离开时停下。"""
    import uvicorn

    sock = socket.create_server(("127.0.0.1", 0))
    options = uvicorn.Config(
        serve.make_app(the_service), log_level="critical", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        sock.close()


def tiny_state() -> dict:
    """随机权重的小模型的检查点内容（checkpoint.save 用）。"""
    import torch

    import gpt
    import prompt
    from tests import tiny_tokenizer

    texts = ["春天从屋檐上下来，它的鞋是湿的\n夜里有灯，一只鸟在想方向\nuser\nassistant\n"]
    tokenizer_json = tiny_tokenizer.train_json(texts, vocab_size=320)
    vocab = tiny_tokenizer.train(texts, vocab_size=320).vocab_size
    torch.manual_seed(0)
    shape = gpt.GPTConfig(vocab, max_seq_len=128, dim=32, n_head=2, ff=64, n_block=2)
    model = gpt.GPT(shape)
    for weight in model.parameters():  # 输出投影初始为零；随机化才看得出差别
        torch.nn.init.normal_(weight, std=0.3) if weight.dim() > 1 else None
    return {
        "model_config": shape.to_dict(),
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "tokenizer": tokenizer_json,
        "prompt_kinds": list(prompt.KINDS),
        "config": {},
    }


def wait_until(condition, seconds: float = 10.0) -> bool:
    """等条件成立；等不到给 False。"""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
