-- Runs on several nodes: what they take, and how their nodes find each other.

-- How many of its target's slots the run takes, all at once.
alter table runs add column slots bigint not null default 1;

-- What the nodes of an attempt have told each other. A node that has said nothing has no row.
create table attempt_nodes (
  attempt {text} not null references attempts (id),
  -- 0, 1, …
  node bigint not null,
  -- Where the other nodes reach it.
  host {text} not null,
  -- Ports that it keeps free for its processes, as a JSON list.
  ports {text} not null,
  -- `Preparing`, `Ready`, `Done`, `Ended` or `Collected`; never goes back.
  phase {text} not null,
  -- What ended it, as JSON; null: it has not ended, or only because another node had.
  cause {text},
  -- When it ended, by this server's clock.
  ended_us bigint,
  primary key (attempt, node)
){without_rowid};
