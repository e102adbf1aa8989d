use swarm_api::v1::endpoint_spec::ResolutionMode;
use swarm_api::v1::{NetworkAttachmentConfig, ServiceSpec};

use super::tests::{WEB, container, create, update, web, wrong};

#[test]
fn networks_have_aliases_and_options_and_come_and_go() {
    let spec = web(&["--network", "name=lan,alias=db,driver-opt=a=1", "--network", "host"]);
    let networks = |spec: &ServiceSpec| -> Vec<String> {
        let one = |network: &NetworkAttachmentConfig| {
            format!("{} {:?} {:?}", network.target, network.aliases, network.driver_attachment_opts)
        };
        spec.task.networks.iter().map(one).collect()
    };
    assert_eq!(networks(&spec), ["nid [\"db\"] {\"a\": \"1\"}", "hid [] {}"]);
    assert_eq!(update(spec.clone(), &["--network-add", "host"]).unwrap(), spec);
    let changed =
        update(spec.clone(), &["--network-add", "name=nid,alias=store", "--network-rm", "host"]).unwrap();
    assert_eq!(networks(&changed), ["nid [\"store\"] {}"]);
    assert_eq!(networks(&update(changed, &["--network", "lan,host"]).unwrap()), ["nid [] {}", "hid [] {}"]);
    assert!(update(spec, &["--network", ""]).unwrap().task.networks.is_empty());
    wrong(create(&[WEB, &["--network", "alias=db"]].concat()), "name=NETWORK is missing");
    let native = create(&["--name", "n", "--runtime", "process", "--", "sleep", "1"]).unwrap();
    wrong(update(native.clone(), &["--network-add", "lan"]), "are for containers");
    wrong(update(native, &["--endpoint-mode", "dnsrr"]), "--endpoint-mode is for containers");
}

#[test]
fn what_is_published_and_how_the_name_is_resolved() {
    let ports = |spec: &ServiceSpec| -> Vec<(u32, u32)> {
        spec.endpoint.iter().flat_map(|e| &e.ports).map(|p| (p.published_port, p.target_port)).collect()
    };
    let spec = web(&["--publish", "8080:80", "--ports", "a:7:70", "--endpoint-mode", "dnsrr"]);
    assert_eq!(ports(&spec), [(70, 7), (8080, 80)]);
    assert_eq!(spec.endpoint.as_ref().unwrap().mode(), ResolutionMode::Dnsrr);
    let spec = update(spec, &["--publish-rm", "7", "--publish-add", "53:53/udp,8080:80"]).unwrap();
    assert_eq!(ports(&spec), [(8080, 80), (53, 53)]);
    assert_eq!(spec.endpoint.as_ref().unwrap().mode(), ResolutionMode::Dnsrr, "it stays");
    let spec = update(spec, &["--ports", "", "--endpoint-mode", "vip"]).unwrap();
    assert_eq!((ports(&spec), spec.endpoint.unwrap().mode()), (vec![], ResolutionMode::Vip));
    assert_eq!(update(web(&[]), &["--endpoint-mode=vip", "--publish-rm", "80"]).unwrap(), web(&[]));
}

#[test]
fn lists_grow_and_shrink() {
    let spec = web(&[
        "--env=A=1,B=2",
        "--label=a=1,b=2",
        "--container-label=x=1",
        "--group=g,h",
        "--ulimit=nofile=1,nproc=2",
        "--dns=10.0.0.1",
        "--host=db:10.0.0.7,store:10.0.0.8",
        "--sysctl=net.a=1",
        "--constraint=node.role==worker",
        "--placement-pref=spread=node.labels.zone",
        "--generic-resources=fpga=1,ssd=2",
    ]);
    let edited = update(
        spec.clone(),
        &[
            "--env-add=A=3,C=4",
            "--env-rm=B",
            "--label-add=c=3",
            "--label-rm=a",
            "--container-label-add=y=2",
            "--container-label-rm=x",
            "--group-add=i,h",
            "--group-rm=g",
            "--ulimit-add=nofile=5:6",
            "--ulimit-rm=nproc",
            "--dns-rm=10.0.0.1",
            "--dns-search-add=lan",
            "--host-add=mail:10.0.0.9",
            "--host-rm=db,store:10.0.0.8",
            "--sysctl-add=net.b=2",
            "--sysctl-rm=net.a",
            "--constraint-add=node.labels.zone!=a",
            "--constraint-rm=node.role==worker",
            "--placement-pref-add=spread=node.labels.rack",
            "--placement-pref-rm=spread=node.labels.zone",
            "--generic-resource-add=fpga=4",
            "--generic-resource-rm=ssd",
        ],
    )
    .unwrap();
    let expected = web(&[
        "--env=A=3,C=4",
        "--label=b=2,c=3",
        "--container-label=y=2",
        "--group=h,i",
        "--ulimit=nofile=5:6",
        "--dns-search=lan",
        "--host=mail:10.0.0.9",
        "--sysctl=net.b=2",
        "--constraint=node.labels.zone!=a",
        "--placement-pref=spread=node.labels.rack",
        "--generic-resources=fpga=4",
    ]);
    assert_eq!(edited, expected);
    // What is there already, and what is not there, changes nothing: no task is replaced for it.
    let nothing = [
        "--env-rm=X",
        "--label-rm=x",
        "--group-rm=x",
        "--ulimit-rm=core",
        "--dns-rm=10.9.9.9",
        "--host-rm=x",
        "--constraint-rm=node.role==manager",
        "--placement-pref-rm=spread=node.labels.x",
        "--generic-resource-rm=x",
        "--publish-rm=80",
    ];
    assert_eq!(update(spec.clone(), &nothing).unwrap(), spec);
    assert_eq!(update(web(&[]), &nothing).unwrap(), web(&[]));
    let native =
        |words: &[&str]| create(&[&["--name", "n", "--runtime", "process"], words, &["--", "s"]].concat());
    let changed =
        update(native(&["--env=A=1", "--ulimit=core=1"]).unwrap(), &["--env-add=B=2", "--ulimit-rm=core"]);
    assert_eq!(changed.unwrap(), native(&["--env=A=1,B=2"]).unwrap());
    wrong(update(native(&[]).unwrap(), &["--sysctl-rm", "x"]), "are for containers");
    wrong(update(spec, &["--constraint-add", "x"]), "x");
}

#[test]
fn the_environment_may_come_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("env");
    std::fs::write(&path, "A=1\nB=2\n").unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(container(&web(&["--env-file", path, "--env", "B=3,C=4"])).env, ["A=1", "B=3", "C=4"]);
    let error = create(&[WEB, &["--env-file", "/nowhere/env"]].concat()).unwrap_err().to_string();
    assert!(error.starts_with("--env-file /nowhere/env: "), "{error}");
}
