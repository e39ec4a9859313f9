# The image of matrix-stack: one static program and nothing else. docs/images.md tells how it is built and checked.
ARG RUST_IMAGE=rust:1.95-slim-bookworm

FROM ${RUST_IMAGE} AS build
WORKDIR /src
# Versions as the lock of the sources has them; to build for another architecture, build on it.
COPY . .
ARG SOURCE_DATE_EPOCH=0
ARG CARGO_AUDITABLE=0.7.7
RUN cargo install --locked --version "${CARGO_AUDITABLE}" cargo-auditable
RUN scripts/static-binary /out \
 && install -m 644 LICENSE /out/LICENSE \
 && install -d -m 700 -o 991 -g 991 /out/data \
 && find /out -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH}" {} +

FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="matrix-stack" \
      org.opencontainers.image.description="Plans, checks, runs, routes, watches and repairs a complete self-hosted Matrix deployment" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/ /
# The user of Synapse's own image, so that files made by one are the other's too.
USER 991:991
WORKDIR /data
EXPOSE 8008
ENTRYPOINT ["/matrix-stack"]
