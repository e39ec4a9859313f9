//! What a stack's configuration turns on in Synapse, as far as endpoints depend on it.

use serde_json::{Map, Value};

/// The Synapse options of a stack, asked for by dotted name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features(Map<String, Value>);

impl Features {
    /// The features that these Synapse options turn on: a stack's `synapse.extra`, or a whole configuration.
    pub fn from_synapse_options(options: &Map<String, Value>) -> Self {
        Self(options.clone())
    }

    /// The features that a stack turns on.
    pub fn of(stack: &model::Stack) -> Self {
        let features = Self::from_synapse_options(&stack.synapse.extra);
        if stack.auth.mas.is_some() {
            features.with("matrix_authentication_service.enabled")
        } else {
            features
        }
    }

    /// Turns an option on, such as `experimental_features.msc4306_enabled`.
    #[must_use]
    pub fn with(mut self, name: &str) -> Self {
        let mut parts: Vec<&str> = name.split('.').collect();
        let last = parts.pop().unwrap_or_default();
        let mut map = &mut self.0;
        for part in parts {
            let value = map.entry(part).or_insert_with(|| Value::Object(Map::new()));
            if !value.is_object() {
                *value = Value::Object(Map::new());
            }
            let Value::Object(inner) = value else { return self };
            map = inner;
        }
        map.insert(last.to_owned(), Value::Bool(true));
        self
    }

    /// Whether the option of this dotted name is set to something that turns it on.
    pub fn is_on(&self, name: &str) -> bool {
        let mut parts = name.split('.');
        let first = parts.next().and_then(|part| self.0.get(part));
        let value = parts.try_fold(first, |value, part| value.map(|value| value.get(part))).flatten();
        match value {
            None | Some(Value::Null) => false,
            Some(Value::Bool(on)) => *on,
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            Some(Value::String(text)) => !text.is_empty() && text != "off",
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
        }
    }
}

/// Which configuration registers an endpoint: alternatives, each of options that all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    text: Box<str>,
    alternatives: Vec<Vec<(bool, String)>>,
}

impl Condition {
    /// Parses `a & !b | c`: `!` for an option that is off, `&` binds stronger than `|`.
    pub fn parse(text: &str) -> Self {
        let alternatives = text
            .split('|')
            .map(|all| {
                all.split('&')
                    .map(|option| {
                        let option = option.trim();
                        match option.strip_prefix('!') {
                            Some(name) => (false, name.to_owned()),
                            None => (true, option.to_owned()),
                        }
                    })
                    .collect()
            })
            .collect();
        Self { text: text.into(), alternatives: if text.is_empty() { Vec::new() } else { alternatives } }
    }

    /// Whether this configuration fulfils it. No condition always holds.
    pub fn holds(&self, features: &Features) -> bool {
        self.alternatives.is_empty()
            || self.alternatives.iter().any(|all| all.iter().all(|(on, name)| features.is_on(name) == *on))
    }

    /// Whether there is no condition.
    pub fn is_always(&self) -> bool {
        self.alternatives.is_empty()
    }

    /// The alternatives that none of these options has a part in; none if that leaves no way to fulfil it.
    pub(crate) fn without(&self, options: &[&str]) -> Option<Vec<&[(bool, String)]>> {
        let left: Vec<_> = self
            .alternatives
            .iter()
            .filter(|all| !all.iter().any(|(_, name)| options.contains(&name.as_str())))
            .map(Vec::as_slice)
            .collect();
        (self.is_always() || !left.is_empty()).then_some(left)
    }

    /// The condition as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_read_options_by_dotted_name() {
        let options = serde_json::json!({
            "experimental_features": { "msc1_enabled": true, "mode": "off", "endpoint": "https://a/" },
            "oidc_providers": [],
        });
        let Value::Object(map) = options else { unreachable!() };
        let features = Features::from_synapse_options(&map);
        let holds = |text: &str| Condition::parse(text).holds(&features);
        assert!(holds(""));
        assert!(holds("experimental_features.msc1_enabled"));
        assert!(!holds("!experimental_features.msc1_enabled"));
        assert!(!holds("experimental_features.mode"));
        assert!(!holds("oidc_providers"));
        assert!(holds("oidc_providers | experimental_features.endpoint & !nothing.at.all"));
        assert!(features.with("oidc_config.enabled").is_on("oidc_config.enabled"));
    }
}
