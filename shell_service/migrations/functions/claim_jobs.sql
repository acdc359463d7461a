-- Claims up to p_count jobs for a runner, shared between users by max-min fairness over running slots: whoever runs
-- least comes first, users who run equally many take turns (p_cursor is the user served last), and within a user the
-- lowest ord. Claims are serialised by an advisory lock, so the limits hold exactly; finishes only lower the counts
-- and need no lock.
--
-- Jobs may run for hours, and none is stopped for another, so nobody may have all slots: whoever runs something already
-- takes another one only while he runs at most seven times as many as are left free. One user alone has 7/8 of the
-- slots, of n users each 7/(7n + 1), and whoever runs nothing finds one until there are many. (Choudhury and Hahne,
-- "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998, there for buffers.) With fewer than 8
-- slots that would be too much of them.
--
-- The cost is O((p_count + slots) * log n), whatever the backlog: of the users who have ready work, at most as many
-- as there are slots run something, and the walk below stops at p_count users who run nothing. Users at their limit
-- are passed over without their jobs being read; so are users who are not active.
CREATE FUNCTION claim_jobs(p_runner int, p_incarnation uuid, p_count int, p_cursor int, p_max_running int)
RETURNS TABLE (job_id uuid, user_id int, attempt smallint, fence bigint)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
-- The tables swing between 0 and 1,000,000 rows, and a plan made when they were empty is kept by its connection: only
-- walks along an index, and loops over few rows, are right at both ends.
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_mergejoin = off
SET enable_hashjoin = off
AS $$
#variable_conflict use_column
DECLARE
  v_user int := p_cursor;
  v_next int;
  v_running int;
  v_limit int;
  v_idle int := 0;       -- users found who run nothing
  v_free int;            -- slots of all runners; null where all of them may be taken
  v_wrapped boolean := false;
  v_users int[] := '{}';
  v_runs int[] := '{}';
  v_rooms int[] := '{}';
  v_job uuid;
  v_taken ready_job;
BEGIN
  -- A claim need not be flushed to disk: the record of the script's start is, and with it everything before.
  PERFORM set_config('synchronous_commit', 'off', true);
  PERFORM pg_advisory_xact_lock(7101);
  -- Whoever declares a runner gone takes the same lock, so no claim can slip in after that.
  PERFORM 1 FROM runner r WHERE r.id = p_runner AND r.incarnation = p_incarnation AND r.state = 'live';
  IF NOT FOUND THEN
    RAISE EXCEPTION 'this runner is not live any more' USING ERRCODE = 'SH001';
  END IF;

  SELECT CASE WHEN sum(r.slots) >= 8 THEN sum(r.slots) - (SELECT count(*) FROM running_job) END INTO v_free
  FROM runner r WHERE r.state = 'live';

  WHILE v_idle < p_count LOOP
    SELECT q.user_id INTO v_next FROM ready_job q WHERE q.user_id > v_user ORDER BY q.user_id LIMIT 1;
    IF NOT FOUND THEN
      EXIT WHEN v_wrapped;
      v_wrapped := true;
      v_user := 0;
      CONTINUE;
    END IF;
    EXIT WHEN v_wrapped AND v_next > p_cursor;
    v_user := v_next;
    SELECT count(*) INTO v_running FROM running_job r WHERE r.user_id = v_user;
    SELECT coalesce((SELECT l.max_running FROM user_limits l WHERE l.user_id = v_user), p_max_running) INTO v_limit
    FROM "user" u WHERE u.id = v_user AND u.active;
    IF v_running < v_limit THEN  -- not where the limit is null, as of who is not active
      v_users := v_users || v_user;
      v_runs := v_runs || v_running;
      v_rooms := v_rooms || v_limit - v_running;
      IF v_running = 0 THEN
        v_idle := v_idle + 1;
      END IF;
    END IF;
  END LOOP;

  -- What is taken is moved one by one: for a join the planner walks the whole queue when it last knew it to be short.
  FOR v_job IN
    WITH candidate AS (
      SELECT u.runs, u.turn, j.job_id, row_number() OVER (PARTITION BY u.user_id ORDER BY j.ord, j.job_id) AS rank
      FROM unnest(v_users, v_runs, v_rooms) WITH ORDINALITY AS u(user_id, runs, room, turn)
      CROSS JOIN LATERAL (
        SELECT q.job_id, q.ord FROM ready_job q WHERE q.user_id = u.user_id
        ORDER BY q.ord, q.job_id LIMIT least(u.room, p_count)) j),
    ranked AS (
      SELECT c.job_id, c.runs + c.rank AS runs, row_number() OVER (ORDER BY c.runs + c.rank, c.turn) AS place
      FROM candidate c)
    -- Those that come later run more and find less: after the first for whom it is too much, it is for all.
    SELECT r.job_id FROM ranked r
    WHERE r.place <= p_count AND (r.runs = 1 OR v_free IS NULL OR r.runs <= 7 * (v_free - r.place))
  LOOP
    DELETE FROM ready_job q WHERE q.job_id = v_job RETURNING q.* INTO v_taken;
    CONTINUE WHEN NOT FOUND;  -- it was cancelled meanwhile
    INSERT INTO running_job AS r (job_id, user_id, ord, attempt, fence, runner_id, incarnation, script_id)
    VALUES (v_job, v_taken.user_id, v_taken.ord, (v_taken.attempt + 1)::smallint,
      -- The time too: after a crash of the server a sequence may give again what no flushed transaction took.
      (extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1024 + nextval('fence_seq') % 1024,
      p_runner, p_incarnation, v_taken.script_id)
    RETURNING r.job_id, r.user_id, r.attempt, r.fence INTO job_id, user_id, attempt, fence;
    RETURN NEXT;
  END LOOP;
END $$;
