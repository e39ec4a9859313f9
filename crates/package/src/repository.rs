//! The repository's files.

use std::io::Write as _;

use flate2::{Compression, GzBuilder};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::{Chart, File, PackageError};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What Helm calls the parts of a chart in an OCI registry (<https://helm.sh/docs/topics/registries/>).
const CONFIG: &str = "application/vnd.cncf.helm.config.v1+json";
const CONTENT: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";

/// Everything of the repository: `NAME-VERSION.tgz`, `index.yaml`, and `oci/NAME` as an OCI layout
/// (<https://github.com/opencontainers/image-spec/blob/main/image-layout.md>).
///
/// `url` is where the archives will be, without a slash at its end; without it they are beside the index. `time`, in seconds
/// since 1970, is when everything was made.
pub fn repository(charts: &[Chart], url: Option<&str>, time: u64) -> Result<Vec<File>, PackageError> {
    let mut files = Vec::new();
    let mut entries = Map::new();
    for chart in charts {
        let metadata = &chart.metadata;
        let archive = archive(chart, time)
            .map_err(|source| PackageError::Archive { name: metadata.name.clone(), source })?;
        let name = format!("{}-{}.tgz", metadata.name, metadata.version);
        let mut entry = object(json!(metadata));
        entry.insert("created".to_owned(), timestamp(time).into());
        entry.insert("digest".to_owned(), hash(&archive).into());
        let place = url.map_or_else(|| name.clone(), |url| format!("{url}/{name}"));
        entry.insert("urls".to_owned(), json!([place]));
        entries.insert(metadata.name.clone(), json!([entry]));
        files.extend(oci(chart, &archive, time));
        files.push(File { path: name.into(), contents: archive });
    }
    let index = object(json!({ "apiVersion": "v1", "entries": entries, "generated": timestamp(time) }));
    let index = render::yaml_document("A Helm repository, packaged by matrix-stack.", index);
    files.push(File { path: "index.yaml".into(), contents: index.into() });
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn archive(chart: &Chart, time: u64) -> std::io::Result<Vec<u8>> {
    // Time 0 stands for none, and 255 for no system in particular.
    let gzip = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
    let mut tar = tar::Builder::new(gzip);
    for (path, contents) in &chart.files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(time);
        tar.append_data(&mut header, format!("{}/{path}", chart.metadata.name), contents.as_slice())?;
    }
    let mut gzip = tar.into_inner()?;
    gzip.flush()?;
    gzip.finish()
}

/// A layout with one manifest, which its version names.
fn oci(chart: &Chart, archive: &[u8], time: u64) -> Vec<File> {
    let metadata = &chart.metadata;
    let config = bytes(&json!(metadata));
    let describe =
        |kind: &str, blob: &[u8]| json!({ "mediaType": kind, "digest": digest(blob), "size": blob.len() });
    let manifest = bytes(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": describe(CONFIG, &config),
        "layers": [describe(CONTENT, archive)],
        "annotations": {
            "org.opencontainers.image.created": timestamp(time),
            "org.opencontainers.image.description": metadata.description,
            "org.opencontainers.image.title": metadata.name,
            "org.opencontainers.image.version": metadata.version,
        },
    }));
    let mut listed = describe(MANIFEST, &manifest);
    // A tag has no `+`, and Helm writes `_` for it.
    listed["annotations"] =
        json!({ "org.opencontainers.image.ref.name": metadata.version.replace('+', "_") });
    let index = bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [listed],
    }));
    let layout = bytes(&json!({ "imageLayoutVersion": "1.0.0" }));
    let place = |path: &str| std::path::Path::new("oci").join(&metadata.name).join(path);
    let mut files = vec![
        File { path: place("oci-layout"), contents: layout },
        File { path: place("index.json"), contents: index },
    ];
    for blob in [config, manifest, archive.to_vec()] {
        files.push(File { path: place(&format!("blobs/sha256/{}", hash(&blob))), contents: blob });
    }
    files
}

fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(object) = value { object } else { Map::new() }
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hash(bytes))
}

/// A time as RFC 3339 has it, in UTC.
fn timestamp(time: u64) -> String {
    let (days, second) = (time / 86_400, time % 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut day) = (1970, days);
    while day >= if is_leap(year) { 366 } else { 365 } {
        day -= if is_leap(year) { 366 } else { 365 };
        year += 1;
    }
    let mut month = 0;
    let february = if is_leap(year) { 29 } else { 28 };
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        month += 1;
        if day < length {
            break;
        }
        day -= length;
    }
    format!(
        "{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z",
        day + 1,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (time, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(time), text);
        }
    }
}
