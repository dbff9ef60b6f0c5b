//! Label and field selectors: parsed once from the query, matched against the slim view of an object.

use crate::resource::{ApiResource, Kind};
use crate::status::{ApiError, ApiResult};
use crate::store::Slim;

/// Both selectors of a list, a watch or a deletion of many.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Debug, Clone, PartialEq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
    Greater(i64),
    Less(i64),
}

#[derive(Debug, Clone, PartialEq)]
struct FieldRequirement {
    label: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// Parses the two query parameters.
    ///
    /// # Errors
    /// 400, when one does not parse or the resource has no such field label.
    pub fn parse(api: &ApiResource, labels: &str, fields: &str) -> ApiResult<Self> {
        let parsed = parse_labels(labels).ok_or_else(|| {
            ApiError::bad_request(format!("unable to parse requirement: invalid selector: '{labels}'"))
        })?;
        let selector = Self { labels: parsed, fields: parse_fields(fields).map_err(ApiError::bad_request)? };
        let nothing = Slim::default();
        for field in &selector.fields {
            if nothing.field(api.kind, &field.label).is_none() {
                return Err(ApiError::bad_request(format!("field label not supported: {}", field.label)));
            }
        }
        Ok(selector)
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether an object matches.
    pub fn matches(&self, kind: Kind, slim: &Slim) -> bool {
        self.labels.iter().all(|r| r.matches(slim.label(&r.key)))
            && self.fields.iter().all(|f| {
                let equal = slim.field(kind, &f.label).is_some_and(|v| v == f.value.as_str());
                equal == f.equal
            })
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        match &self.test {
            Test::In(set) => value.is_some_and(|v| set.iter().any(|s| s == v)),
            Test::NotIn(set) => value.is_none_or(|v| set.iter().all(|s| s != v)),
            Test::Exists => value.is_some(),
            Test::Missing => value.is_none(),
            Test::Greater(than) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *than),
            Test::Less(than) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *than),
        }
    }
}

/// The value of a field that a selector string requires to be equal, before the resource is known to have it.
pub fn required_field(fields: &str, label: &str) -> Option<String> {
    parse_fields(fields).ok()?.into_iter().find(|f| f.equal && f.label == label).map(|f| f.value)
}

fn parse_fields(text: &str) -> Result<Vec<FieldRequirement>, String> {
    let mut out = Vec::new();
    for term in text.split(',').filter(|t| !t.is_empty()) {
        let (label, value, equal) = if let Some((l, v)) = term.split_once("!=") {
            (l, v, false)
        } else if let Some((l, v)) = term.split_once("==") {
            (l, v, true)
        } else if let Some((l, v)) = term.split_once('=') {
            (l, v, true)
        } else {
            return Err(format!("invalid selector: '{text}'; can't understand '{term}'"));
        };
        out.push(FieldRequirement { label: label.into(), value: value.into(), equal });
    }
    Ok(out)
}

/// Splits at commas that stand outside of parentheses.
fn terms(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0_usize, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

fn parse_labels(text: &str) -> Option<Vec<Requirement>> {
    terms(text).into_iter().map(str::trim).filter(|t| !t.is_empty()).map(parse_label).collect()
}

fn parse_label(term: &str) -> Option<Requirement> {
    let one = |v: &str| vec![v.trim().to_owned()];
    let (key, test) = if let Some((k, set)) = set_of(term, " notin ") {
        (k, Test::NotIn(set))
    } else if let Some((k, set)) = set_of(term, " in ") {
        (k, Test::In(set))
    } else if let Some((k, v)) = term.split_once("!=") {
        (k, Test::NotIn(one(v)))
    } else if let Some((k, v)) = term.split_once("==") {
        (k, Test::In(one(v)))
    } else if let Some((k, v)) = term.split_once('=') {
        (k, Test::In(one(v)))
    } else if let Some((k, v)) = term.split_once('>') {
        (k, Test::Greater(v.trim().parse().ok()?))
    } else if let Some((k, v)) = term.split_once('<') {
        (k, Test::Less(v.trim().parse().ok()?))
    } else if let Some(k) = term.strip_prefix('!') {
        (k, Test::Missing)
    } else {
        (term, Test::Exists)
    };
    let key = key.trim();
    let fine = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    fine.then(|| Requirement { key: key.into(), test })
}

fn set_of<'a>(term: &'a str, word: &str) -> Option<(&'a str, Vec<String>)> {
    let spaced = word.trim_end();
    let (key, rest) = term.split_once(spaced)?;
    let inner = rest.trim().strip_prefix('(')?.strip_suffix(')')?;
    Some((key, inner.split(',').map(|v| v.trim().to_owned()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::PODS;

    fn slim(json: &str) -> Slim {
        Slim::of(json.as_bytes())
    }

    #[test]
    fn label_selectors_match_as_documented() {
        let pod = slim(r#"{"metadata":{"name":"a","labels":{"app":"web","tier":"1"}}}"#);
        let cases = [
            ("", true),
            ("app=web", true),
            ("app==web,tier=1", true),
            ("app!=web", false),
            ("app in (db, web)", true),
            ("app in (db)", false),
            ("app notin (db)", true),
            ("missing notin (db)", true),
            ("missing!=x", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("missing", false),
            ("tier>0", true),
            ("tier<1", false),
            ("app in (db,web),tier notin (2,3)", true),
        ];
        for (text, want) in cases {
            let selector = Selector::parse(PODS, text, "").unwrap();
            assert_eq!(selector.matches(Kind::Pod, &pod), want, "{text}");
        }
        assert_eq!(Selector::parse(PODS, "a b", "").unwrap_err().code, 400);
    }

    #[test]
    fn field_selectors_match_and_unknown_fields_are_refused() {
        let pod = slim(r#"{"metadata":{"name":"a"},"spec":{"nodeName":"n"},"status":{"phase":"Running"}}"#);
        let cases = [
            ("spec.nodeName=n", true),
            ("spec.nodeName=m", false),
            ("spec.nodeName!=", true),
            ("status.phase!=Failed,status.phase!=Succeeded", true),
            ("metadata.name==a", true),
        ];
        for (text, want) in cases {
            assert_eq!(Selector::parse(PODS, "", text).unwrap().matches(Kind::Pod, &pod), want, "{text}");
        }
        let error = Selector::parse(PODS, "", "spec.nope=1").unwrap_err();
        assert_eq!(error.message, "field label not supported: spec.nope");
    }
}
