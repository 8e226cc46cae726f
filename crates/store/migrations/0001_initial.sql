-- The first schema, for SQLite and PostgreSQL. Times are microseconds since the epoch, JSON is text.
-- {text} compares bytewise on both; {without_rowid} keeps small rows in their key's own tree on SQLite.

create table workspaces (
  id {text} primary key,
  subscription_id {text} not null,
  resource_group {text} not null,
  name {text} not null,
  -- The same three in lower case: Azure Resource Manager compares them without case.
  subscription_key {text} not null,
  group_key {text} not null,
  name_key {text} not null,
  region {text} not null,
  created_us bigint not null,
  unique (subscription_key, group_key, name_key)
);

create table apps (
  id {text} primary key,
  name {text} not null,
  secret_sha256 {text} not null,
  grants {text} not null,
  created_us bigint not null,
  generated boolean not null
);

create table experiments (
  workspace {text} not null references workspaces (id),
  id {text} not null,
  name {text} not null,
  description {text},
  tags {text} not null,
  created_us bigint not null,
  archived_us bigint,
  -- The number of the youngest run; runs are numbered in the transaction that creates them.
  last_number bigint not null,
  latest_run_id {text},
  latest_run_created_us bigint,
  primary key (workspace, id),
  unique (workspace, name)
);
create index experiments_by_creation on experiments (workspace, created_us, id);

create table snapshots (
  workspace {text} not null references workspaces (id),
  id {text} not null,
  digest {text} not null,
  size_bytes bigint not null,
  created_us bigint not null,
  primary key (workspace, id)
){without_rowid};

-- What lists look at. The two large documents of a run are beside it, so that a search reads little.
create table runs (
  workspace {text} not null,
  id {text} not null,
  uuid {text} not null,
  number bigint not null,
  experiment {text} not null,
  parent {text},
  root {text} not null,
  ownership {text} not null,
  state {text} not null,
  desired {text} not null,
  version bigint not null,
  attempt {text},
  cause {text},
  created_us bigint not null,
  started_us bigint,
  ended_us bigint,
  priority bigint not null,
  target {text},
  name {text},
  display_name {text},
  description {text},
  run_type {text},
  script_name {text},
  cancel_reason {text},
  hidden boolean not null,
  created_by {text} not null,
  properties {text} not null,
  tags {text} not null,
  extra {text} not null,
  warnings {text} not null,
  error {text},
  snapshot {text},
  environment {text},
  request_digest {text},
  primary key (workspace, id),
  foreign key (workspace, experiment) references experiments (workspace, id)
);
create index runs_by_experiment on runs (workspace, experiment, created_us, id);
create index runs_by_start on runs (workspace, experiment, started_us, id);
create index runs_by_creation on runs (workspace, created_us, id);
create index runs_by_root on runs (workspace, root);
create index runs_by_parent on runs (workspace, parent, created_us, id) where parent is not null;
-- The queue of each target in its order, and what executes: both small, however many runs there are.
create index runs_waiting on runs (target, priority desc, created_us, id, workspace) where state = 'Queued';
create index runs_in_execution on runs (target) where state in ('Starting', 'Preparing', 'Running', 'Finalizing');

-- What belongs to a run is only ever written in a transaction that has read or written the run's row, so that no foreign key is
-- needed here. They would also hurt: PostgreSQL plans their checks once per connection, on a table that may be empty then.
create table run_documents (
  workspace {text} not null,
  run {text} not null,
  definition {text},
  document {text},
  primary key (workspace, run)
){without_rowid};

create table events (
  workspace {text} not null,
  run {text} not null,
  seq bigint not null,
  at_us bigint not null,
  name {text} not null,
  data {text} not null,
  primary key (workspace, run, seq)
){without_rowid};

create table attempts (
  id {text} primary key,
  workspace {text} not null,
  run {text} not null,
  number bigint not null,
  target {text} not null,
  state {text} not null,
  intended_us bigint not null,
  ended_us bigint,
  cause {text},
  node {text},
  unique (workspace, run, number)
);

create table artifacts (
  workspace {text} not null references workspaces (id),
  container {text} not null,
  path {text} not null,
  size_bytes bigint not null,
  digest {text},
  created_us bigint not null,
  updated_us bigint not null,
  primary key (workspace, container, path)
){without_rowid};

create table environments (
  hash {text} primary key,
  spec {text} not null,
  lock {text} not null,
  created_us bigint not null
);
create index environments_by_creation on environments (created_us, hash);
