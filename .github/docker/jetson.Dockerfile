# vosrt for Jetson with JetPack 7, whose TensorRT is the image's; built on the board, from the root of a clone. It was not tried.
#
#   docker build -f .github/docker/jetson.Dockerfile -t vosrt .
#   docker run --rm --runtime nvidia -v "$PWD:/clips" vosrt clip.mp4 --mask first.png -o result
#
# What the image holds, and what that means for passing it on, is as in Dockerfile.
FROM nvcr.io/nvidia/tensorrt:25.09-py3
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ python3-venv && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 vosrt
COPY . /source
RUN python3 -m venv --system-site-packages /opt/vosrt && python3 -m venv /opt/tools \
    && /opt/vosrt/bin/pip install --no-cache-dir --config-settings=cmake.define.VOSRT_CUDA_ARCHITECTURES="87-real;110-real" \
        /source "cuda-bindings>=13,<14" "onnx>=1.17,<2" "polygraphy>=0.50,<1" \
    && /opt/tools/bin/pip install --no-cache-dir "cyclonedx-bom==7.5.0" \
    && mkdir -p /usr/local/share/vosrt \
    && /opt/vosrt/bin/vos-run licenses >/usr/local/share/vosrt/licences.txt \
    && /opt/tools/bin/cyclonedx-py environment /opt/vosrt -o /usr/local/share/vosrt/sbom.json
USER 10001
WORKDIR /clips
ENTRYPOINT ["/opt/vosrt/bin/vos-run"]
