COPY (
    SELECT
        old.id,
        old.base_id,
        old.agency_base_id,
        old.name,
        old.url,
        old.kind,
        old.settings,
        old.schedule,
        old.is_deleted,
        old.created_at,
        old.updated_at
    FROM knowledge_base.source AS old
    WHERE old.updated_at < %(export_boundary)s
      AND EXISTS (
          SELECT 1
          FROM knowledge_base.source AS newer
          WHERE newer.base_id = old.base_id
            AND newer.updated_at > old.updated_at
      )
) TO STDOUT WITH CSV HEADER;
