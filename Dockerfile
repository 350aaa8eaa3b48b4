# An image that trains on NVIDIA GPUs, and on the CPU where there is none. The driver's major version must be 580 or
# newer; for older ones: docker build --build-arg EXTRA=cuda12 -t jaxgpt .
#
#   docker build -t jaxgpt .
#   docker run --rm --gpus all -v "$PWD/work:/work" jaxgpt jaxgpt train --config quickstart
#
# /work is the folder of data, runs and config files; the user of the container, 1000, must be able to write there.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim-bookworm AS toolchain
RUN apt-get update && apt-get install -y --no-install-recommends build-essential curl ca-certificates git
ARG RUST=1.95.0
RUN curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain ${RUST}
ENV PATH=/root/.cargo/bin:$PATH

FROM toolchain AS builder
WORKDIR /source
COPY Cargo.toml Cargo.lock pyproject.toml README.md LICENSE ./
COPY rust_loader rust_loader
COPY jaxgpt jaxgpt
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm
ARG EXTRA=cuda13
COPY --from=builder /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/jaxgpt-*.whl)[${EXTRA},hub,tensorboard]" && rm -r /wheels
RUN useradd --create-home --uid 1000 jaxgpt && install -d -o jaxgpt -g jaxgpt /work
USER jaxgpt
WORKDIR /work
VOLUME /work
ENV PYTHONUNBUFFERED=1
# exec form: signals reach the command, so docker stop -t 120 lets a run finish its step and save
CMD ["jaxgpt", "doctor"]
