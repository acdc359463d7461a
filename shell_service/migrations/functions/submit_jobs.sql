-- Stores submissions, each whole or not at all, in one call: what a user may still submit is looked up, the jobs are
-- entered and counted, and nobody else's submission of the same user comes in between.
--
-- p_submissions: [{n, user_id, jobs, key, digest, ids, audit, asks, limits, network, secrets, script, overlap,
-- later}], where n is the place in
-- the array, jobs how many, key and digest (hex) null without an Idempotency-Key, ids those of its jobs, and audit what
-- the log is to say if it is stored (see write_audit). asks is true where they ask for anything that not everybody may
-- have: limits holds the most that any of them asks for, by name, network whether any asks for it, secrets the names of
-- all. script is the id of the script that its one job runs, overlap what is to be done about other jobs of it instead of
-- what the script says, later whether that has time. p_jobs: the jobs of all, each with the n of its submission. p_scripts:
-- the scripts of all; one of which others are to be skipped or cancelled comes once only. The limits are those of users who have none of their
-- own: budgets, and what a job gets and may ask for, by name.
--
-- Returns a row for each submission that was not stored: 'known' with the ids that the same request stored before,
-- 'mismatch' where the key came with another request, 'inactive'; 'network' where its user may not give jobs the
-- network; 'unreachable' where no runner can, with their reason; 'invalid' with the maxima of the limits that it exceeds
-- and the names of secrets that there are not; or 'queued' and 'minute' for the budget that it would exceed, with the
-- budget, what counts against it, and after how many seconds it would not by the minute's. And a row 'stored' with what
-- its jobs got that ask for nothing, for each that was stored and whose user has such limits of his own. Of scripts also
-- 'archived', 'overlap' with the id of a job for which it is skipped, and 'crowd' where too many would be cancelled.
--
-- The queue is counted only where it might be full (see SubmissionCount): for an exact counter all claims and cancels
-- of a user would wait for its row. Submissions of the last minute are those of this minute by the clock, and of the
-- one before as much as the last sixty seconds reach into it.
CREATE FUNCTION submit_jobs(p_submissions json, p_jobs json, p_max_queued int, p_jobs_per_minute int,
  p_defaults jsonb, p_maxima jsonb, p_scripts int[])
RETURNS TABLE (n int, outcome text, allowed int, counted int, seconds int, ids uuid[], detail jsonb)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
-- Plans are kept, and the tables grow from nothing: only walks along an index are right at both ends.
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_mergejoin = off
SET enable_hashjoin = off
AS $$
#variable_conflict use_column
DECLARE
  v_minute int := floor(extract(epoch FROM now()) / 60)::int;
  v_left float8 := 1 - extract(second FROM now()) / 60;  -- of this minute, and as much of the last counts
  s record;
  v_user int := 0;
  v_queued int;
  v_now int;             -- submitted in this minute
  v_before int;          -- and in the one before
  v_users int[] := '{}';
  v_taken int[] := '{}';
  v_counts int[] := '{}';
  v_last int := 0;       -- of those arrays
  v_refused int[] := '{}';
  v_audit json[] := '{}';
  v_limits jsonb := p_defaults - 'timeout';
  v_timeout float8 := p_defaults ->> 'timeout';
  v_own_limits jsonb[] := '{}';     -- by n + 1, where a user has his own
  v_own_timeouts float8[] := '{}';
  v_unbounded int[] := '{}';
  v_overlap text;
  v_others uuid[];
BEGIN
  PERFORM pg_advisory_xact_lock(7200, u.user_id)
  FROM (SELECT DISTINCT r.user_id FROM json_to_recordset(p_submissions) AS r(user_id int) ORDER BY 1) AS u;

  IF p_scripts <> '{}' THEN
    PERFORM lock_scripts(p_scripts);
    v_unbounded := unbounded_scripts(p_scripts);
  END IF;

  -- A statement of its own, as it sees what was there when the locks were had.
  FOR s IN
    SELECT r.n, r.user_id, r.jobs, r.key, decode(r.digest, 'hex') AS digest, r.ids, r.audit,
      coalesce(u.active, false) AS active,
      coalesce(l.max_queued, p_max_queued) AS max_queued,
      coalesce(l.jobs_per_minute, p_jobs_per_minute) AS jobs_per_minute, coalesce(c.queued, 0) AS queued,
      r.asks, r.limits, r.network, r.secrets, l.network AS may_network, r.script, r.overlap, r.later,
      nullif(l.defaults, '{}') AS defaults, nullif(l.maxima, '{}') AS maxima,
      CASE v_minute - c.minute WHEN 0 THEN c.submitted ELSE 0 END AS now,
      CASE v_minute - c.minute WHEN 0 THEN c.before WHEN 1 THEN c.submitted ELSE 0 END AS before
    FROM json_to_recordset(p_submissions) AS r(
      n int, user_id int, jobs int, key text, digest text, ids uuid[], audit json,
      asks boolean, limits jsonb, network boolean, secrets text[], script int, overlap text, later boolean)
    LEFT JOIN "user" u ON u.id = r.user_id
    LEFT JOIN user_limits l ON l.user_id = r.user_id
    LEFT JOIN submission_count c ON c.user_id = r.user_id
    ORDER BY r.user_id, r.n
  LOOP
    IF s.user_id <> v_user THEN
      v_user := s.user_id;
      v_queued := s.queued;
      v_now := s.now;
      v_before := s.before;
    END IF;
    n := s.n;
    outcome := NULL;
    detail := NULL;
    IF s.key IS NOT NULL THEN
      SELECT CASE k.request_digest WHEN s.digest THEN 'known' ELSE 'mismatch' END, k.job_ids INTO outcome, ids
      FROM idempotency_key k WHERE k.user_id = s.user_id AND k.key = s.key;
    END IF;
    IF outcome IS NULL AND NOT s.active THEN
      outcome := 'inactive';
    END IF;
    IF outcome IS NULL AND s.asks THEN
      IF s.network AND s.may_network IS NOT TRUE THEN
        outcome := 'network';
      ELSE
        detail := jsonb_strip_nulls(jsonb_build_object('limits', (
            SELECT jsonb_object_agg(a.name, m.most) FROM jsonb_each(s.limits) AS a(name, value),
              LATERAL (SELECT coalesce(s.maxima -> a.name, p_maxima -> a.name) AS most) AS m
            WHERE a.value::float8 > m.most::float8
          ), 'secrets', (
            SELECT jsonb_agg(w.name) FROM unnest(s.secrets) AS w(name)
            WHERE NOT EXISTS (SELECT FROM secret x WHERE x.user_id = s.user_id AND x.name = w.name))));
        IF detail <> '{}' THEN
          outcome := 'invalid';
        ELSIF s.network THEN
          -- Where none is up, one that will be may be able to.
          SELECT to_jsonb(min(r.facts ->> 'network')) INTO detail FROM runner r WHERE r.state = 'live'
          HAVING bool_and(r.facts ->> 'network' IS NOT NULL);
          IF detail IS NOT NULL THEN
            outcome := 'unreachable';
          END IF;
        END IF;
      END IF;
    END IF;
    IF outcome IS NULL THEN
      IF v_queued + s.jobs > s.max_queued THEN
        v_queued := (
          SELECT count(*) FROM (SELECT FROM ready_job q WHERE q.user_id = s.user_id LIMIT s.max_queued + 1) AS r
        ) + (
          SELECT count(*) FROM (SELECT FROM deferred_job q WHERE q.user_id = s.user_id LIMIT s.max_queued + 1) AS d
        ) + CASE v_users[v_last] WHEN v_user THEN v_taken[v_last] ELSE 0 END;
      END IF;
      IF v_queued + s.jobs > s.max_queued THEN
        outcome := 'queued';
        allowed := s.max_queued;
        counted := v_queued;
      ELSIF v_now + v_before * v_left + s.jobs > s.jobs_per_minute THEN
        outcome := 'minute';
        allowed := s.jobs_per_minute;
        counted := v_now + v_before * v_left;
        seconds := CASE WHEN s.jobs > s.jobs_per_minute THEN NULL
          WHEN v_now + s.jobs <= s.jobs_per_minute
            THEN ceil(60 * (v_left - (s.jobs_per_minute - v_now - s.jobs)::float8 / v_before))
          ELSE ceil(60 * (v_left + 1 - (s.jobs_per_minute - s.jobs)::float8 / v_now)) END;
      END IF;
    END IF;
    IF outcome IS NULL AND s.script IS NOT NULL THEN
      SELECT coalesce(s.overlap, c.overlap) INTO v_overlap FROM script c WHERE c.id = s.script AND c.archived_at IS NULL;
      IF NOT FOUND THEN
        outcome := 'archived';
      ELSIF v_overlap IN ('skip', 'cancel_previous', 'queue_latest') AND NOT s.later THEN
        -- What waits for a time of its own is none of them, but for its next try, or as one of many that are held.
        v_others := ARRAY(
          SELECT q.job_id FROM ready_job q WHERE q.script_id = s.script
          UNION ALL
          SELECT d.job_id FROM deferred_job d WHERE d.script_id = s.script AND (d.run_at = 'infinity' OR d.attempt > 0
            OR EXISTS (SELECT FROM job j WHERE j.id = d.job_id AND j.run_at IS NULL))
          UNION ALL
          SELECT r.job_id FROM running_job r WHERE r.script_id = s.script AND v_overlap <> 'queue_latest'
          LIMIT 501);
        IF v_others = '{}' THEN
          NULL;
        ELSIF v_overlap <> 'skip' AND cardinality(v_others) > 500 THEN  -- as many as a cancel takes at once
          outcome := 'crowd';
          counted := 500;
        ELSIF v_overlap = 'skip' THEN
          outcome := 'overlap';
          ids := v_others[1:1];
        ELSE
          PERFORM cancel_jobs(v_others, s.audit ->> 'username', ARRAY[s.audit::jsonb || jsonb_build_object(
            'action', 'job.cancel', 'detail', jsonb_build_object('jobs', cardinality(v_others), 'by', v_overlap))]::json[]);
        END IF;
      END IF;
    END IF;
    IF outcome IS NOT NULL THEN
      v_refused := v_refused || s.n;
      RETURN NEXT;
      CONTINUE;
    END IF;
    v_queued := v_queued + s.jobs;
    v_now := v_now + s.jobs;
    IF v_last = 0 OR v_users[v_last] <> v_user THEN
      v_last := v_last + 1;
      v_users[v_last] := v_user;
      v_taken[v_last] := 0;
    END IF;
    v_taken[v_last] := v_taken[v_last] + s.jobs;
    v_counts[v_last] := v_queued;
    IF s.key IS NOT NULL THEN
      INSERT INTO idempotency_key (user_id, key, request_digest, job_ids) VALUES (s.user_id, s.key, s.digest, s.ids);
    END IF;
    IF s.audit IS NOT NULL THEN
      v_audit := v_audit || s.audit;
    END IF;
    IF s.defaults IS NOT NULL OR s.maxima IS NOT NULL THEN
      SELECT jsonb_object_agg(d.name, least(d.value::numeric, coalesce(s.maxima -> d.name, p_maxima -> d.name)::numeric))
      INTO detail FROM jsonb_each(p_defaults || coalesce(s.defaults, '{}')) AS d(name, value);
      v_own_limits[n + 1] := detail - 'timeout';
      v_own_timeouts[n + 1] := detail ->> 'timeout';
      outcome := 'stored';
      RETURN NEXT;
    END IF;
  END LOOP;

  WITH new AS MATERIALIZED (
    SELECT * FROM json_to_recordset(p_jobs) AS r(
      n int, id uuid, user_id int, name text, priority smallint, code text, upload text, entrypoint text, shell text,
      args jsonb, env jsonb,
      stdin text, timeout float8, limits jsonb, network boolean, secrets jsonb, secrets_in_env boolean,
      secret_env jsonb, script_id int, script text, script_version int, parameters jsonb, share_output boolean,
      schedule_id int, fired_for timestamptz, notify jsonb,
      run_at timestamptz, retries smallint, retry_delay float8, on_lost text,
      created_at timestamptz, ord bigint, deferred boolean, held_until timestamptz)
    WHERE r.n <> ALL (v_refused)),
  placed AS MATERIALIZED (
    SELECT id, user_id, ord, script_id, CASE WHEN deferred THEN run_at WHEN held_until IS NOT NULL THEN held_until
      WHEN script_id IS NOT NULL AND script_id <> ALL (v_unbounded) THEN 'infinity' END AS run_at FROM new),
  stored AS (
    INSERT INTO job (id, user_id, name, priority, code, upload, entrypoint, shell, args, env, stdin, timeout, limits, network,
                     secrets, secrets_in_env, secret_env, script_id, script, script_version, parameters, share_output,
                     schedule_id, fired_for, notify,
                     run_at, retries, retry_delay, on_lost, created_at, modified)
    SELECT id, user_id, name, priority, code, decode(upload, 'hex'), entrypoint, shell, args, env, stdin,
           coalesce(timeout, v_own_timeouts[n + 1], v_timeout), coalesce(v_own_limits[n + 1], v_limits) || limits, network,
           secrets, secrets_in_env, secret_env, script_id, script, script_version, parameters, share_output,
           schedule_id, fired_for, notify,
           run_at, retries, retry_delay, on_lost, created_at, created_at FROM new),
  later AS (
    INSERT INTO deferred_job (job_id, user_id, ord, run_at, script_id)
    SELECT id, user_id, ord, run_at, script_id FROM placed WHERE run_at IS NOT NULL),
  counted AS (
    INSERT INTO submission_count AS c (user_id, minute, submitted, before, queued)
    SELECT t.user_id, v_minute, t.taken, 0, t.queued FROM unnest(v_users, v_taken, v_counts) AS t(user_id, taken, queued)
    ON CONFLICT (user_id) DO UPDATE SET minute = excluded.minute, queued = excluded.queued,
      submitted = excluded.submitted + CASE WHEN c.minute = excluded.minute THEN c.submitted ELSE 0 END,
      before = CASE excluded.minute - c.minute WHEN 0 THEN c.before WHEN 1 THEN c.submitted ELSE 0 END)
  INSERT INTO ready_job (job_id, user_id, ord, script_id)
  SELECT id, user_id, ord, script_id FROM placed WHERE run_at IS NULL;
  IF FOUND THEN
    PERFORM pg_notify('ready', '');
  END IF;
  IF p_scripts <> '{}' THEN
    PERFORM admit_jobs(p_scripts);
  END IF;
  PERFORM write_audit(v_audit);
END $$;
