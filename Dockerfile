# The server, on a CPU: docker build -t seap . && docker run -p 8000:8000 seap
# With networks of your own: docker run -p 8000:8000 -v ./models:/models:ro seap serve /models/my-model --masks /models/tasks …
FROM python:3.12-slim

RUN useradd --create-home --uid 10001 seap
WORKDIR /home/seap/src
# a smaller image, without CUDA's libraries: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch==2.13.0"
COPY pyproject.toml README.md LICENSE ./
COPY seap seap
RUN pip install --no-cache-dir ".[serve]" && rm -rf /home/seap/src/build

USER seap
WORKDIR /home/seap
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=600s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["seap"]
CMD ["serve", "--demo", "--host", "0.0.0.0", "--allowed-host", "*"]
