//! Which stack a command is about, and where its files lie.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use config::Loaded;
use model::{Layout, Preset, Topology, choose_preset};

use crate::args::StackArguments;
use crate::companions;
use crate::machine::this_machine;

/// The stack file that counts when none is named.
const DEFAULT_FILE: &str = "stack.yaml";

/// A stack, where its files lie, and why its preset was chosen if the stack does not name one.
pub(crate) struct Place {
    pub(crate) loaded: Loaded,
    pub(crate) layout: Layout,
    pub(crate) chosen: Option<(Preset, String)>,
}

impl Place {
    /// Loads the stack that the arguments mean, with what they change.
    pub(crate) fn find(arguments: &StackArguments) -> anyhow::Result<Self> {
        Self::find_for(arguments, &Home::of_this_process())
    }

    /// The same for a service of the system, whoever asks: where the stack file names no data directory, it is root's.
    pub(crate) fn find_for_system(arguments: &StackArguments) -> anyhow::Result<Self> {
        Self::find_for(arguments, &Home { is_root: true, directory: None, data: None })
    }

    fn find_for(arguments: &StackArguments, home: &Home) -> anyhow::Result<Self> {
        let mut loaded = load(arguments.config.as_deref())?;
        companions::check(&loaded)?;
        if let Some(preset) = arguments.preset {
            loaded.stack.preset = Some(preset);
        }
        let chosen = loaded.stack.preset.is_none().then(|| choose_preset(this_machine()));
        let layout = Layout::new(data_dir(arguments, &loaded, home)?);
        Ok(Self { loaded, layout, chosen })
    }

    /// The stack's topology.
    pub(crate) fn plan(&self) -> anyhow::Result<Topology> {
        let preset = self.chosen.as_ref().map_or(Preset::Small, |(preset, _)| *preset);
        Ok(self.loaded.plan(&self.layout.sockets(), preset)?)
    }

    /// The directory of installed packages: the one that is named, or the default.
    pub(crate) fn packages_dir(named: Option<&Path>) -> anyhow::Result<PathBuf> {
        if let Some(dir) = named {
            return std::path::absolute(dir).context("the packages directory has no absolute path");
        }
        let home = Home::of_this_process();
        config::default_packages_dir(home.is_root, home.directory.as_deref(), home.data.as_deref())
            .ok_or_else(|| {
                anyhow!("neither HOME nor XDG_DATA_HOME is set; say where to install with `--packages-dir`")
            })
    }
}

/// The stack file that the arguments mean, where there is one.
pub(crate) fn file(named: Option<&Path>) -> Option<&Path> {
    named.or_else(|| Some(Path::new(DEFAULT_FILE)).filter(|file| file.exists()))
}

/// Loads the named file, or `stack.yaml` where it exists, or a stack called `localhost`.
pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Loaded> {
    match self::file(file) {
        Some(file) => Ok(config::load(file)?),
        None => Ok(Loaded::implicit()),
    }
}

fn data_dir(arguments: &StackArguments, loaded: &Loaded, home: &Home) -> anyhow::Result<PathBuf> {
    let dir = arguments
        .data_dir
        .clone()
        .or_else(|| loaded.stack.data_dir.clone())
        .or_else(|| {
            let name = &loaded.stack.server_name;
            config::default_data_dir(name, home.is_root, home.directory.as_deref(), home.data.as_deref())
        })
        .ok_or_else(|| {
            anyhow!("neither HOME nor XDG_DATA_HOME is set; say where the data goes with `--data-dir`")
        })?;
    std::path::absolute(&dir)
        .with_context(|| format!("the data directory `{}` has no absolute path", dir.display()))
}

/// What the environment says about where data belongs.
struct Home {
    is_root: bool,
    directory: Option<PathBuf>,
    data: Option<PathBuf>,
}

impl Home {
    fn of_this_process() -> Self {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            is_root: nix::unistd::geteuid().is_root(),
            directory: variable("HOME"),
            data: variable("XDG_DATA_HOME"),
        }
    }
}
