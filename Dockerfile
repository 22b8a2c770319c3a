# rada on a CPU, for a user without rights:
#   docker build -t rada .
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
RUN pip install --no-cache-dir "$(ls /wheels/*.whl)[embedded]" && rm -r /wheels \
    && useradd --create-home --uid 1000 rada \
    && mkdir /work /cache && chown rada:rada /work /cache
USER rada
ENV RADA_CACHE=/cache/rada HF_HOME=/cache/huggingface
VOLUME /cache
WORKDIR /work
ENTRYPOINT ["rada"]
CMD ["--help"]
