-- Environments under names, and finding the runs that used a built one.

-- What clients registered. The document is the definition without its name, its version and the password of a registry.
create table registered_environments (
  workspace {text} not null references workspaces (id),
  name {text} not null,
  version {text} not null,
  -- Grows by one with each version of the name: the latest is the one that was registered last, whatever the versions are called.
  seq bigint not null,
  document {text} not null,
  -- The password of the image's registry, sealed with a key that only the server has; null: none.
  sealed_password {text},
  -- A list; a label stands at one version of the name at most.
  labels {text} not null,
  created_us bigint not null,
  created_by {text} not null,
  primary key (workspace, name, version),
  unique (workspace, name, seq)
);

-- Which runs of a workspace used an environment; runs that built none are not in it.
create index runs_by_environment on runs (workspace, environment) where environment is not null;
