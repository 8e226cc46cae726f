//! What Kubernetes is asked for, and what it refuses.

use super::*;

#[tokio::test]
async fn kubernetes_is_asked_before_a_run_is_stored() {
    let double = Double::new();
    let executor = double.executor();
    let plain = crate::slurm::definition();
    assert_eq!(executor.check(&plain).await.unwrap(), None);
    assert_eq!(executor.check(&plain).await.unwrap(), None);
    assert_eq!(double.cluster.requests("POST jobs"), 1, "runs with the same wishes are one question");
    assert!(double.cluster.objects("jobs").is_empty(), "it was only a question");

    let wish = KubernetesWish { priority_class: Some("none".into()), ..KubernetesWish::default() };
    let refused = Definition { kubernetes: wish, ..plain.clone() };
    // It takes such a Job, and makes no pods of it: a pod is asked for, too.
    let error = executor.check(&refused).await.unwrap_err();
    let words = error.message();
    assert!(words.starts_with("Kubernetes does not take this run: pods \"trainyard-check-"), "{words}");
    assert!(words.ends_with("is forbidden: no PriorityClass with name none was found"), "{words}");
    let wish = KubernetesWish { memory: Some("1Zi".into()), ..KubernetesWish::default() };
    double.cluster.fault("POST jobs", 1, How::Answers(422, "Invalid", "Job.batch \"x\" is invalid: memory"));
    let error = executor.check(&Definition { kubernetes: wish, ..plain.clone() }).await.unwrap_err();
    assert_eq!(error.message(), "Kubernetes does not take this run: Job.batch \"x\" is invalid: memory");
    // Who may make Jobs only cannot ask about pods, and needs not.
    let wish = KubernetesWish { memory: Some("2Gi".into()), ..KubernetesWish::default() };
    let words = "pods is forbidden: User \"system:serviceaccount:runs:t\" cannot create resource \"pods\" in API group \"\" in the namespace \"runs\"";
    double.cluster.fault("POST pods", 1, How::Answers(403, "Forbidden", words));
    assert_eq!(executor.check(&Definition { kubernetes: wish, ..plain.clone() }).await.unwrap(), None);

    let dockerfile = definition(&json!({ "container": { "image": { "dockerfile": { "text": "FROM python" } } } }));
    let error = executor.check(&dockerfile).await.unwrap_err();
    assert!(error.message().contains("builds no images"), "{error}");
    let mpi = definition(&json!({ "distribution": { "node_count": 2, "processes_per_node": 1, "communication": "mpi" } }));
    assert_eq!(executor.check(&mpi).await.unwrap(), None, "the agents reach each other");

    let packages = definition(&json!({ "environment": { "python": { "python": "3.11", "pip": ["six"], "tools": [] } } }));
    let warning = executor.check(&packages).await.unwrap().unwrap();
    assert!(warning.contains("built anew in every pod"), "{warning}");

    double.cluster.set_down(true);
    let other = definition(&json!({ "kubernetes": { "cpus": "3" } }));
    let warning = executor.check(&other).await.unwrap().unwrap();
    assert!(warning.contains("could not be asked") && warning.contains("etcdserver"), "{warning}");
}

#[tokio::test]
async fn kubernetes_gets_what_target_run_and_template_ask_for() {
    let double = Double::new();
    double.cluster.set_kubelet(Kubelet::Idle);
    let template = json!({ "metadata": { "labels": { "team": "vision", "trainyard.attempt": "mine" } }, "spec": { "hostNetwork": true, "containers": [{ "name": "run", "securityContext": { "runAsUser": 1000 } }] } });
    let wish = KubernetesWish { memory: Some("1Gi".into()), tolerations: vec!["gpu=yes:NoSchedule".into()], ..KubernetesWish::default() };
    let target = KubernetesTarget { wish, template: Some(template), image_pull_secrets: vec!["mine".into()], ..target() };
    let executor = executor(&double.cluster.kubeconfig(), SERVER, target);
    let definition = definition(&json!({
        "container": { "image": { "named": { "reference": "registry.example/team/torch:2" } }, "shm_bytes": 1024 },
        "kubernetes": { "gpus": 2, "cpus": "500m", "node_selector": { "zone": "a" } },
    }));
    let logins = json!({ "logins": [{ "host": "registry.example", "username": "ada", "password": "hunter2" }] });
    let order = AttemptOrder { containers: logins, ..order_for(&definition) };
    executor.submit(&order).await.unwrap();
    until("the pod", || async { !double.cluster.objects("pods").is_empty() && double.cluster.objects("secrets").len() == 2 }).await;
    let pod = double.cluster.only("pods").unwrap();
    let (spec, run) = (&pod["spec"], &pod["spec"]["containers"][0]);
    assert_eq!(run["image"], "registry.example/team/torch:2");
    assert_eq!(
        run["resources"],
        json!({ "requests": { "cpu": "500m", "memory": "1Gi" }, "limits": { "memory": "1Gi", "nvidia.com/gpu": "2" } })
    );
    assert_eq!(run["securityContext"]["runAsUser"], 1000);
    assert_eq!(spec["nodeSelector"], json!({ "zone": "a" }));
    assert_eq!(spec["tolerations"], json!([{ "key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule" }]));
    assert_eq!(
        (&spec["hostNetwork"], &spec["restartPolicy"], &spec["automountServiceAccountToken"]),
        (&json!(true), &json!("Never"), &json!(false))
    );
    assert_eq!(pod["metadata"]["labels"]["team"], "vision");
    assert_eq!(pod["metadata"]["labels"]["trainyard.attempt"], order.attempt.to_string(), "what this server finds it by is its own");
    let pulls: Vec<&str> = spec["imagePullSecrets"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(pulls, ["mine".to_owned(), format!("trainyard-{}-registries", order.attempt)]);
    assert!(!pod.to_string().contains("hunter2") && !double.cluster.only("jobs").unwrap().to_string().contains("secret-token"));
    // The agent is inside already: it is told of no container, and of no login.
    let inside = executor.order(AttemptId(order.attempt)).await.unwrap().unwrap();
    assert!(inside.definition["container"].is_null() && inside.containers.is_null());
    assert_eq!(inside.token, "secret-token");
}

#[tokio::test]
async fn kubernetes_quotas_are_waited_for_and_refusals_are_not() {
    let double = Double::new();
    double.cluster.fault(
        "POST jobs",
        1,
        How::Answers(403, "Forbidden", "jobs.batch \"x\" is forbidden: exceeded quota: runs, used: 5, limited: 5"),
    );
    let (executor, order) = (double.executor(), order());
    executor.submit(&order).await.unwrap();
    until_waits(&executor, AttemptId(order.attempt), "exceeded quota: runs").await;
    for (code, reason, words, by_definition) in [
        (403, "Forbidden", "jobs.batch is forbidden: User \"trainyard\" cannot create resource \"jobs\"", false),
        (404, "NotFound", "namespaces \"runs\" not found", false),
        (422, "Invalid", "Job.batch \"x\" is invalid: spec.template.spec.priorityClassName: not found", true),
    ] {
        double.cluster.fault("POST jobs", 1, How::Answers(code, reason, words));
        let order = crate::order();
        executor.submit(&order).await.unwrap();
        let seen = until_seen(&executor, AttemptId(order.attempt), |seen| !matches!(seen, Observation::Pending { .. })).await;
        let Observation::Over { cause: Cause::StartFailed { message, by_definition: found } } = seen else { panic!("{seen:?}") };
        assert!(message.contains(words) && found == by_definition, "{message}");
    }
}
