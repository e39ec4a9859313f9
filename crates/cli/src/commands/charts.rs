//! `package-charts`: Helm charts as a repository.

use package::Chart;

use crate::args::PackageCharts;

pub(crate) fn package(arguments: &PackageCharts) -> anyhow::Result<()> {
    let charts = Chart::read_all(&arguments.charts)?;
    let url = arguments.url.as_deref().map(|url| url.trim_end_matches('/'));
    let files = package::repository(&charts, url, arguments.time)?;
    super::files::write_for_all(
        &arguments.out,
        files.iter().map(|file| (file.path.as_path(), file.contents.as_slice())),
    )?;
    let names: Vec<_> =
        charts.iter().map(|chart| format!("{} {}", chart.metadata.name, chart.metadata.version)).collect();
    eprintln!("packaged {} into `{}`", names.join(", "), arguments.out.display());
    Ok(())
}
