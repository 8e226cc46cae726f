-- The queue of each target by whose runs wait: the planner takes the first of every share, however many the others have.
create index runs_waiting_by_share on runs (target, created_by, workspace, experiment, priority desc, created_us, id) where state = 'Queued';
