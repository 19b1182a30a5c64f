# 写诗的网页与接口。随附的模型在里面，自己的运行时挂上：
#   docker build -t poem .                          # 只用 CPU
#   docker build -t poem --build-arg CUDA=cu128 .   # 有 NVIDIA 显卡；运行时加 --gpus all
#   docker run --rm -p 8000:8000 -v "${PWD}:/model:ro" poem --API_KEY=你的密钥
FROM python:3.11-slim

ARG CUDA=cpu
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

WORKDIR /app
COPY requirements.txt ./
# torch 从它自己的索引装：默认索引里的带着约 3 GB 的 CUDA 库
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/${CUDA} "torch>=2.1,<3" \
    && pip install --no-cache-dir -r requirements.txt "starlette>=0.37" "uvicorn>=0.22" "pypinyin>=0.44"
COPY . ./

RUN useradd --create-home poem
USER poem
EXPOSE 8000
# 200 是能写诗了，503 是还写不了
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# exec 的写法：docker stop 的 SIGTERM 直接送到 serve.py，它写完手头的诗再走（docker stop -t 30）
ENTRYPOINT ["python", "serve.py", "--HOST=0.0.0.0", "--WORK_DIR=/model"]
