# rada on a CPU, for a user without rights. It serves the model in /work/model, to whoever sends the token:
#   docker build -t rada .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/my-model:/work/model:ro" -e RADA_SERVE_TOKEN="$(cat token.txt)" rada
# All other commands run as well:
#   docker run --rm -v "$PWD:/work" rada fit photos/train --shots 16 --out my-model
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /wheels

FROM python:3.12-slim
# PyPI's torch brings gigabytes of CUDA; this index has it for the CPU alone.
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/*.whl)[embedded,serve]" && rm -r /wheels \
    && useradd --create-home --uid 1000 rada \
    && mkdir /work /cache && chown rada:rada /work /cache
USER rada
ENV RADA_CACHE=/cache/rada HF_HOME=/cache/huggingface
VOLUME /cache
WORKDIR /work
ENTRYPOINT ["rada"]
EXPOSE 8000
CMD ["serve", "/work/model", "--host", "0.0.0.0", "--port", "8000"]
