-- A run without a parent is its own root, as nearly all are, and is found by its id. Left out of this index it is one page less
-- that a new run touches at a random place, which is what a durable `startrun` mostly writes.
drop index runs_by_root;
create index runs_by_root on runs (workspace, root) where root <> id;
