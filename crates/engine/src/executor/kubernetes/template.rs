//! Lays what an operator wrote over a pod that was made here.
//!
//! Tables are laid over tables, key by key. Lists of things that have names (containers, volumes, variables, pull secrets) are laid over each
//! other by name, mounts by path, ports by number; a command and its arguments are taken as they are, because their words belong together; other
//! lists are put together. `null` takes away what is there.

use serde_json::{Map, Value};
use trainyard_core::{Error, Result};

/// What things in lists are told apart by; the first that all of them have.
const KEYS: [&str; 4] = ["name", "mountPath", "containerPort", "topologyKey"];

/// Lists that are one thing: half of another command is none.
const WHOLE: [&str; 2] = ["command", "args"];

/// Lays `over` over `base`.
pub(super) fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => merge_tables(base, over),
        (Value::Array(base), Value::Array(over)) => merge_lists(base, over),
        (base, over) => *base = over.clone(),
    }
}

fn merge_tables(base: &mut Map<String, Value>, over: &Map<String, Value>) {
    for (key, value) in over {
        match base.get_mut(key) {
            _ if value.is_null() => drop(base.remove(key)),
            Some(present) if WHOLE.contains(&key.as_str()) => present.clone_from(value),
            Some(present) => merge(present, value),
            None => drop(base.insert(key.clone(), value.clone())),
        }
    }
}

fn merge_lists(base: &mut Vec<Value>, over: &[Value]) {
    let is_key = |key: &&&str| base.iter().chain(over).all(|item| item.get(**key).is_some());
    let key = KEYS.iter().find(is_key).copied();
    for item in over {
        let same = |present: &&mut Value| key.map_or(**present == *item, |key| present[key] == item[key]);
        match base.iter_mut().find(same) {
            Some(present) => merge(present, item),
            None => base.push(item.clone()),
        }
    }
}

/// What in a template this server relies on being as it makes it.
const KEPT: [&str; 2] = ["/spec/restartPolicy", "/spec/activeDeadlineSeconds"];

/// Refuses a template that cannot be meant.
///
/// # Errors
/// [`trainyard_core::ErrorKind::Invalid`], with what is wrong.
pub(super) fn check(template: &Value) -> Result<()> {
    let Some(fields) = template.as_object() else {
        return Err(Error::invalid("a pod template must be a table with `metadata` and `spec`"));
    };
    if let Some(other) = fields.keys().find(|key| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "spec")) {
        return Err(Error::invalid(format!("a pod template has no `{other}`: expected `metadata` and `spec`")));
    }
    match KEPT.iter().find(|kept| template.pointer(kept).is_some()) {
        Some(kept) => {
            Err(Error::invalid(format!("`{}` of a pod template is this server's to say", kept.trim_start_matches('/').replace('/', "."))))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(mut base: Value, over: &Value) -> Value {
        merge(&mut base, over);
        base
    }

    #[test]
    fn tables_are_laid_over_key_by_key_and_null_takes_away() {
        assert_eq!(
            merged(json!({ "a": { "b": 1, "c": 2 }, "d": 3 }), &json!({ "a": { "c": 4 }, "d": null, "e": 5 })),
            json!({ "a": { "b": 1, "c": 4 }, "e": 5 })
        );
    }

    #[test]
    fn containers_volumes_and_mounts_are_told_apart_and_the_rest_is_put_together() {
        let base = json!({ "containers": [{ "name": "run", "image": "a", "volumeMounts": [{ "name": "x", "mountPath": "/x" }] }], "tolerations": [{ "key": "a" }] });
        let over = json!({ "containers": [{ "name": "run", "securityContext": { "runAsUser": 1000 }, "volumeMounts": [{ "mountPath": "/y", "subPath": "s" }] },
            { "name": "side" }], "tolerations": [{ "key": "a" }, { "key": "b" }] });
        let found = merged(base, &over);
        assert_eq!(found["containers"][0]["image"], "a");
        assert_eq!(found["containers"][0]["securityContext"]["runAsUser"], 1000);
        assert_eq!(found["containers"][0]["volumeMounts"].as_array().unwrap().len(), 2);
        assert_eq!(found["containers"][1]["name"], "side");
        assert_eq!(found["tolerations"], json!([{ "key": "a" }, { "key": "b" }]));
    }

    #[test]
    fn a_command_is_replaced_as_a_whole() {
        let base = json!({ "containers": [{ "name": "run", "command": ["agent", "--dir", "a"] }] });
        let over = json!({ "containers": [{ "name": "run", "command": ["sh", "-c", "true"], "args": ["x"] }] });
        let found = merged(base, &over);
        assert_eq!(found["containers"][0]["command"], json!(["sh", "-c", "true"]));
        assert_eq!(found["containers"][0]["args"], json!(["x"]));
    }

    #[test]
    fn what_the_server_relies_on_is_not_the_templates_to_say() {
        assert!(check(&json!({ "metadata": { "labels": { "team": "a" } }, "spec": { "hostNetwork": true } })).is_ok());
        for (bad, words) in [
            (json!([1]), "must be a table"),
            (json!({ "containers": [] }), "no `containers`"),
            (json!({ "spec": { "restartPolicy": "Always" } }), "spec.restartPolicy"),
        ] {
            let error = check(&bad).unwrap_err();
            assert!(error.message().contains(words), "{error}");
        }
    }
}
