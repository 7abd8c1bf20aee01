# The image of finetune-appliance. One file for three builds of torch, chosen by TORCH (in .env, or as --build-arg):
#   cuda    CUDA 13.0, for driver 580 or newer (the default)
#   cu128   CUDA 12.8, for driver 570 or newer; torch 2.11
#   cpu     no GPU, less than half the size; no Unsloth
# The last two come from one of PyTorch's own indexes: TORCH_INDEX, which PyTorch's install page names.
# Pins first, code last: a change in the code rebuilds only the last layer.
# LLAMA_CPP=1 adds llama.cpp (the 4, 5 and 6 bits of `appliance export`), which is compiled in a stage of its own.
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE} AS compiler

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Triton and torch compile at run time: gcc and g++ stay.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc g++ libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && find / -xdev -perm /6000 -type f -exec chmod a-s {} +

WORKDIR /app

# One wheel, or none. For any x86-64 processor with AVX2, or any ARM one, not for the one it is built on; it is
# compiled again only if constraints.txt changes.
FROM compiler AS llama-cpp
ARG LLAMA_CPP=
COPY constraints.txt ./
RUN mkdir /wheels \
 && if [ -n "${LLAMA_CPP}" ]; then \
      CMAKE_ARGS="-DGGML_NATIVE=OFF" pip wheel --quiet --no-cache-dir --no-deps --wheel-dir /wheels \
        "$(grep '^llama-cpp-python==' constraints.txt)"; \
    fi

FROM compiler
ARG TORCH=cuda
ARG TORCH_INDEX=
COPY pyproject.toml constraints*.txt ./
# torch by its exact name: `===2.13.0` never takes 2.13.0+cpu, and `==2.13.0+cpu` nothing else. Pruned in the same layer:
# Unsloth's web app (AGPL; Unsloth itself is for CUDA only), and bitsandbytes' libraries for other CUDA versions.
# hadolint ignore=DL3013,DL3042,SC2086
RUN --mount=type=cache,target=/root/.cache,sharing=locked \
    pins=constraints.txt extras="--extra train --extra sources --extra gguf --extra web --extra notify --extra ray --extra unsloth" \
 && case "${TORCH}" in \
      cuda) wanted="===" ;; \
      cu128) wanted="==" pins=constraints-cu128.txt ;; \
      cpu) wanted="==" extras="--extra train --extra sources --extra gguf --extra web --extra notify --extra ray" ;; \
      *) echo "TORCH=${TORCH}: expected cuda, cu128 or cpu" >&2; exit 1 ;; \
    esac \
 && version=$(sed -n 's/^torch==//p' "${pins}") \
 && if [ "${wanted}" = "==" ]; then version="${version}+${TORCH}"; fi \
 && pip install --quiet --root-user-action=ignore --constraint "${pins}" uv setuptools \
 && uv pip install --system --quiet --compile-bytecode --index-strategy unsafe-best-match \
      ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
      --constraint "${pins}" --requirements pyproject.toml ${extras} "torch${wanted}${version}" \
 && site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
 && rm -rf "${site}/studio" "${site}"/unsloth/studio \
 && find "${site}/bitsandbytes" -name 'libbitsandbytes_*.so' \
      ! -name '*_cpu.so' ! -name '*_cuda128.so' ! -name '*_cuda130.so' -delete \
 && python -c "import torch; built = torch.version.cuda or 'cpu'; assert (built == 'cpu') == ('${TORCH}' == 'cpu'), built"

# The wheel, and the little that it needs besides what is there.
ARG LLAMA_CPP=
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache,sharing=locked --mount=type=bind,from=llama-cpp,source=/wheels,target=/wheels \
    if [ -n "${LLAMA_CPP}" ]; then \
      uv pip install --system --quiet --compile-bytecode --constraint constraints.txt /wheels/*.whl \
      && python -c "import llama_cpp; llama_cpp.llama_backend_init()"; \
    fi

# Any uid can write these: a new volume takes its mode from here.
RUN mkdir /data /runs /cache && chmod 1777 /data /runs /cache

COPY README.md LICENSE ./
COPY datasets_src datasets_src
COPY appliance appliance
RUN uv pip install --system --quiet --no-deps --no-build-isolation --compile-bytecode . \
 && rm -rf build ./*.egg-info

LABEL org.opencontainers.image.title="finetune-appliance" \
      org.opencontainers.image.description="A CSV goes in, a proven model comes out: fine-tuning on one GPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"

# The user need not exist: USER and HOME replace /etc/passwd. What is compiled or downloaded goes to /cache.
ENV USER=app \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HOME=/cache/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1 \
    UNSLOTH_DISABLE_STATISTICS=1 \
    UNSLOTH_COMPILE_LOCATION=/cache/unsloth_compiled \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor \
    APPLIANCE_CACHE_DIR=/cache/appliance \
    APPLIANCE_RUNS_DIR=/runs

# data/train.csv is /data/train.csv, as in a checkout
WORKDIR /
USER 1000:1000
STOPSIGNAL SIGTERM
ENTRYPOINT ["appliance"]
CMD ["--help"]
