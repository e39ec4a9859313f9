//! `install` and `run`: a stack whose processes another supervisor starts.

use crate::args::{PackagesDir, Run, StackArguments};
use crate::place::Place;

pub(crate) fn install(arguments: &PackagesDir, stack: &StackArguments) -> anyhow::Result<()> {
    let place = Place::find(stack)?;
    let packages = Place::packages_dir(arguments.packages_dir.as_deref())?;
    let progress = runtime::progress::for_stderr();
    Ok(runtime::install(&place.plan()?, &place.layout, &packages, &progress)?)
}

pub(crate) fn run(arguments: &Run, stack: &StackArguments) -> anyhow::Result<()> {
    let place = Place::find(stack)?;
    super::on_this_machine(&place)?;
    let topology = place.plan()?;
    let packages = Place::packages_dir(arguments.packages.packages_dir.as_deref())?;
    let progress = runtime::progress::for_stderr();
    super::block_on(async {
        let never = runtime::run(&topology, &place.layout, &packages, &arguments.name, &progress).await?;
        match never {}
    })
}
