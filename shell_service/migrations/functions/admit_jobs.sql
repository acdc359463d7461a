-- Makes ready what waits for its turn among the jobs of its script, as far as the script lets more of them run at once:
-- one, or max_running of those that may run in parallel. Those that are ready or run count. Users take turns, so that
-- nobody waits for all that another has asked for; of one user the lowest ord comes first. For who holds lock_scripts.
CREATE FUNCTION admit_jobs(p_scripts int[]) RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
-- Plans are kept, and the tables grow from nothing: only walks along an index are right at both ends.
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_mergejoin = off
SET enable_hashjoin = off
AS $$
DECLARE
  v_script int;
  v_most int;  -- null: as many as there are
  v_turn int;  -- the user whose job was let in last
  v_before int;
  v_next deferred_job;
  v_admitted boolean := false;
BEGIN
  FOREACH v_script IN ARRAY p_scripts LOOP
    CONTINUE WHEN NOT EXISTS (SELECT FROM deferred_job w WHERE w.script_id = v_script AND w.run_at = 'infinity');
    SELECT CASE s.overlap WHEN 'parallel' THEN s.max_running ELSE 1 END, s.turn INTO v_most, v_turn
    FROM script s WHERE s.id = v_script;
    IF v_most IS NULL THEN
      WITH turn AS (
        DELETE FROM deferred_job d WHERE d.job_id = ANY (ARRAY(
          SELECT w.job_id FROM deferred_job w WHERE w.script_id = v_script AND w.run_at = 'infinity'))
        RETURNING d.*)
      INSERT INTO ready_job (job_id, user_id, ord, attempt, script_id)
      SELECT t.job_id, t.user_id, t.ord, t.attempt, t.script_id FROM turn t;
      v_admitted := v_admitted OR FOUND;
      CONTINUE;
    END IF;
    v_before := v_turn;
    FOR v_place IN 1 + (SELECT count(*) FROM ready_job q WHERE q.script_id = v_script)
      + (SELECT count(*) FROM running_job r WHERE r.script_id = v_script)..v_most
    LOOP
      SELECT w.* INTO v_next FROM deferred_job w
      WHERE w.script_id = v_script AND w.run_at = 'infinity' AND w.user_id > v_turn
      ORDER BY w.user_id, w.ord, w.job_id LIMIT 1;
      IF NOT FOUND THEN
        SELECT w.* INTO v_next FROM deferred_job w WHERE w.script_id = v_script AND w.run_at = 'infinity'
        ORDER BY w.user_id, w.ord, w.job_id LIMIT 1;
      END IF;
      EXIT WHEN NOT FOUND;
      DELETE FROM deferred_job d WHERE d.job_id = v_next.job_id;
      INSERT INTO ready_job (job_id, user_id, ord, attempt, script_id)
      VALUES (v_next.job_id, v_next.user_id, v_next.ord, v_next.attempt, v_next.script_id);
      v_turn := v_next.user_id;
      v_admitted := true;
    END LOOP;
    IF v_turn <> v_before THEN
      UPDATE script s SET turn = v_turn WHERE s.id = v_script;
    END IF;
  END LOOP;
  IF v_admitted THEN
    PERFORM pg_notify('ready', '');
  END IF;
END $$;
