DELETE FROM knowledge_base.source AS old
WHERE old.updated_at < %(export_boundary)s
  AND EXISTS (
      SELECT 1
      FROM knowledge_base.source AS newer
      WHERE newer.base_id = old.base_id
        AND newer.updated_at > old.updated_at
  );
