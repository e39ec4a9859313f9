//! Helm charts as a repository to publish: an archive of each, `index.yaml`, and an OCI layout of each.
//!
//! The same charts always give the same bytes: entries are sorted, times are the one that is given, and owners are nobody.

mod chart;
mod ignore;
mod repository;

use std::path::PathBuf;

pub use chart::{Chart, Metadata};
pub use repository::repository;

/// A file of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Where it goes, relative to the repository.
    pub path: PathBuf,
    /// What is in it.
    pub contents: Vec<u8>,
}

/// Why charts cannot be packaged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackageError {
    /// There is nothing to package.
    #[error("`{}` holds no chart: name a directory with `--charts DIR` in which each chart has a directory with a Chart.yaml", .0.display())]
    NoCharts(PathBuf),
    /// Something cannot be read.
    #[error("cannot read `{}`: {source}; make it readable, or leave it out by a line of .helmignore", .path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of a chart is not as it should be.
    #[error(transparent)]
    File(#[from] config::Report),
    /// A chart is not as it should be.
    #[error("`{}` {reason}", .path.display())]
    Chart {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The system did not let an archive be made, which happens in memory.
    #[error("cannot make the archive of `{name}`: {source}")]
    Archive {
        /// The chart.
        name: String,
        /// Why.
        source: std::io::Error,
    },
}
