//! Where a stack's files go when `stack.yaml` does not say. Pure: the environment is passed in.

use std::path::{Path, PathBuf};

use model::ServerName;

/// The parent of all data directories.
fn parent(is_root: bool, home: Option<&Path>, xdg_data_home: Option<&Path>) -> Option<PathBuf> {
    let data_home = if is_root {
        PathBuf::from("/var/lib")
    } else {
        // The XDG specification ignores relative paths.
        match (xdg_data_home.filter(|path| path.is_absolute()), home.filter(|path| path.is_absolute())) {
            (Some(xdg), _) => xdg.to_owned(),
            (None, Some(home)) => home.join(".local/share"),
            (None, None) => return None,
        }
    };
    Some(data_home.join("matrix-stack"))
}

/// The default of `data_dir`: `/var/lib/matrix-stack/NAME` for root, else `matrix-stack/NAME` below
/// `$XDG_DATA_HOME` or `~/.local/share`, where NAME is the server name made safe for a file's name.
///
/// `None`: not root, and neither `home` nor `xdg_data_home` is an absolute path.
pub fn default_data_dir(
    server_name: &ServerName,
    is_root: bool,
    home: Option<&Path>,
    xdg_data_home: Option<&Path>,
) -> Option<PathBuf> {
    Some(parent(is_root, home, xdg_data_home)?.join(safe_name(server_name)))
}

/// Where installed packages go by default, shared by the stacks of one user: `packages` beside the data directories.
///
/// `None`: as for [`default_data_dir`].
pub fn default_packages_dir(
    is_root: bool,
    home: Option<&Path>,
    xdg_data_home: Option<&Path>,
) -> Option<PathBuf> {
    Some(parent(is_root, home, xdg_data_home)?.join("packages"))
}

/// A server name as a file's name. Different server names get different file names: `_` and `+` are in none.
fn safe_name(server_name: &ServerName) -> String {
    let name = server_name.as_str().replace(':', "_").replace(['[', ']'], "+");
    match name.as_str() {
        // A place of our own beside the data directories.
        "packages" => "packages_".to_owned(),
        dot if dot.starts_with('.') => format!("_{dot}"),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str, is_root: bool, home: Option<&str>, xdg: Option<&str>) -> Option<String> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        default_data_dir(&name, is_root, home.map(Path::new), xdg.map(Path::new))
            .map(|path| path.display().to_string())
    }

    #[test]
    fn root_has_var_lib_and_others_their_data_home() {
        assert_eq!(
            dir("example.org", true, Some("/root"), None).unwrap(),
            "/var/lib/matrix-stack/example.org"
        );
        assert_eq!(
            dir("a.b", false, Some("/home/x"), None).unwrap(),
            "/home/x/.local/share/matrix-stack/a.b"
        );
        assert_eq!(dir("a.b", false, Some("/home/x"), Some("/data")).unwrap(), "/data/matrix-stack/a.b");
        assert_eq!(
            dir("a.b", false, Some("/home/x"), Some("relative")).unwrap(),
            "/home/x/.local/share/matrix-stack/a.b"
        );
        assert_eq!(dir("a.b", false, None, None), None);
        assert_eq!(
            default_packages_dir(true, None, None).unwrap(),
            Path::new("/var/lib/matrix-stack/packages")
        );
    }

    #[test]
    fn names_are_made_safe() {
        for (name, safe) in [
            ("example.org:8448", "example.org_8448"),
            ("[::1]:8448", "+__1+_8448"),
            ("..", "_.."),
            ("packages", "packages_"),
        ] {
            assert_eq!(dir(name, true, None, None).unwrap(), format!("/var/lib/matrix-stack/{safe}"));
        }
    }
}
