-- Makes ready what waits for its turn among the jobs of its script, as far as the script lets more of them run at once:
-- one, or max_running of those that may run in parallel. Those that are ready or run count. For who holds lock_scripts.
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
  v_admitted boolean := false;
BEGIN
  FOREACH v_script IN ARRAY p_scripts LOOP
    SELECT CASE s.overlap WHEN 'parallel' THEN s.max_running ELSE 1 END INTO v_most FROM script s WHERE s.id = v_script;
    IF v_most IS NOT NULL THEN
      v_most := greatest(0, v_most - (SELECT count(*) FROM ready_job q WHERE q.script_id = v_script)
        - (SELECT count(*) FROM running_job r WHERE r.script_id = v_script));
    END IF;
    WITH turn AS (
      DELETE FROM deferred_job d WHERE d.job_id = ANY (ARRAY(
        SELECT w.job_id FROM deferred_job w WHERE w.script_id = v_script AND w.run_at = 'infinity'
        ORDER BY w.ord, w.job_id LIMIT v_most))
      RETURNING d.*)
    INSERT INTO ready_job (job_id, user_id, ord, attempt, script_id)
    SELECT t.job_id, t.user_id, t.ord, t.attempt, t.script_id FROM turn t;
    v_admitted := v_admitted OR FOUND;
  END LOOP;
  IF v_admitted THEN
    PERFORM pg_notify('ready', '');
  END IF;
END $$;
