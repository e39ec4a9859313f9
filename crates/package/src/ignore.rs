//! `.helmignore`, by Helm's own rules (<https://helm.sh/docs/chart_template_guide/helm_ignore_file/>), which differ from Git's:
//! there is no `**`, and `!` leaves out whatever does *not* match.

use regex_lite::Regex;

/// What is always left out: hidden files among the templates.
const ALWAYS: &str = "templates/.?*";

/// The rules of one file.
#[derive(Debug)]
pub(crate) struct Ignore(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    pattern: Regex,
    negated: bool,
    /// Only directories are meant.
    directory: bool,
    /// The whole path is compared, not its last part.
    whole: bool,
}

impl Ignore {
    /// The rules in a text; an error is the number of a line that cannot be understood, and why.
    pub(crate) fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let lines = text.lines().enumerate().chain([(0, ALWAYS)]);
        let rules = lines
            .map(|(number, line)| (number + 1, line.trim()))
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(number, line)| Rule::parse(line).map_err(|reason| (number, reason)));
        Ok(Self(rules.collect::<Result<_, _>>()?))
    }

    /// Whether a path is left out, and with a directory all that is in it.
    pub(crate) fn leaves_out(&self, path: &str, is_directory: bool) -> bool {
        let base = path.rsplit('/').next().unwrap_or(path);
        self.0.iter().any(|rule| {
            let matches = rule.pattern.is_match(if rule.whole { path } else { base });
            if rule.negated {
                !matches || (rule.directory && !is_directory)
            } else {
                matches && (is_directory || !rule.directory)
            }
        })
    }
}

impl Rule {
    fn parse(line: &str) -> Result<Self, &'static str> {
        if line.contains("**") {
            return Err("has `**`, which Helm does not know");
        }
        let (line, negated) = line.strip_prefix('!').map_or((line, false), |rest| (rest, true));
        let (line, directory) = line.strip_suffix('/').map_or((line, false), |rest| (rest, true));
        let (pattern, whole) = line.strip_prefix('/').map_or((line, line.contains('/')), |rest| (rest, true));
        Ok(Self { pattern: glob(pattern)?, negated, directory, whole })
    }
}

/// A shell pattern, in which nothing but `/` itself matches a `/`.
fn glob(pattern: &str) -> Result<Regex, &'static str> {
    let mut regex = "^".to_owned();
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        let part = match letter {
            '*' => "[^/]*".to_owned(),
            '?' => "[^/]".to_owned(),
            '[' => {
                let class: String = letters.by_ref().take_while(|letter| *letter != ']').collect();
                format!("[{}]", class.replace('\\', "\\\\").replace('[', "\\["))
            }
            '\\' => regex_lite::escape(&letters.next().map(String::from).unwrap_or_default()),
            letter => regex_lite::escape(letter.encode_utf8(&mut [0; 4])),
        };
        regex.push_str(&part);
    }
    regex.push('$');
    Regex::new(&regex).map_err(|_| "is no pattern that can be understood")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_helms() {
        let ignore = Ignore::parse("# words\n\n*.tmp\nci/\n/only.txt\ndocs/*.md\n[ab].x\n").unwrap();
        for (path, directory) in [
            ("x.tmp", false),
            ("deep/x.tmp", false),
            ("ci", true),
            ("deep/ci", true),
            ("only.txt", false),
            ("docs/a.md", false),
            ("a.x", false),
            ("templates/.hidden", false),
        ] {
            assert!(ignore.leaves_out(path, directory), "{path}");
        }
        for (path, directory) in [
            ("ci", false),
            ("deep/only.txt", false),
            ("docs/deep/a.md", false),
            ("c.x", false),
            (".hidden", false),
        ] {
            assert!(!ignore.leaves_out(path, directory), "{path}");
        }
        assert_eq!(Ignore::parse("a\n**/b").unwrap_err().0, 2);
        assert!(Ignore::parse("!keep").unwrap().leaves_out("other", false));
    }
}
