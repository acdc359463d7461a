-- Waits until nobody else decides which jobs of these scripts may start, and lets nobody before this transaction ends.
-- Whoever is to write rows about such jobs comes here first, so that nobody waits for another in a circle. Claims need
-- not: they take what was let in before.
CREATE FUNCTION lock_scripts(p_scripts int[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(7300, s.id)
  FROM (SELECT DISTINCT w.id FROM unnest(p_scripts) AS w(id) WHERE w.id IS NOT NULL ORDER BY 1) AS s;
END $$;
