-- What `state.sqlite3` held when a server of 0.1.0 was told to stop: models, configurations and endpoints that boto3 made there.
-- MODELS stands for the folder of --models.
BEGIN TRANSACTION;
CREATE TABLE resources (
        kind TEXT NOT NULL,
        -- Names differ in more than case.
        key TEXT NOT NULL,
        name TEXT NOT NULL,
        created REAL NOT NULL,
        modified REAL NOT NULL,
        document TEXT NOT NULL,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID;
INSERT INTO "resources" VALUES('endpoint','ab','ab',1795737438.785,1795737438.785,'{"EndpointConfigName": "ab", "Variants": [{"VariantName": "a", "Weight": 1.0, "InstanceCount": 1, "Images": ["any/image:1"], "Since": 1795737438.784, "Containers": [{"source": "MODELS/houston.tar.gz", "is_multi_model": false, "handler": "", "environ": [], "hostname": "", "is_cached": true}]}, {"VariantName": "b", "Weight": 3.0, "InstanceCount": 1, "Images": ["any/image:1"], "Since": 1795737438.785, "Containers": [{"source": "MODELS/", "is_multi_model": true, "handler": "", "environ": [["SECRET", "xyz"]], "hostname": "", "is_cached": true}]}]}');
INSERT INTO "resources" VALUES('endpoint','many','many',1795737438.749,1795737438.749,'{"EndpointConfigName": "many", "Variants": [{"VariantName": "AllTraffic", "Weight": 1.0, "InstanceCount": 1, "Images": ["any/image:1"], "Since": 1795737438.749, "Containers": [{"source": "MODELS/", "is_multi_model": true, "handler": "", "environ": [["SECRET", "xyz"]], "hostname": "", "is_cached": true}]}]}');
INSERT INTO "resources" VALUES('endpoint-config','ab','ab',1795737438.772,1795737438.772,'{"ProductionVariants": [{"VariantName": "a", "ModelName": "one", "InitialInstanceCount": 1, "InstanceType": "ml.m5.large", "InitialVariantWeight": 1.0}, {"VariantName": "b", "ModelName": "Many", "InitialInstanceCount": 1, "InstanceType": "ml.m5.large", "InitialVariantWeight": 3.0}]}');
INSERT INTO "resources" VALUES('endpoint-config','many','many',1795737438.744,1795737438.744,'{"ProductionVariants": [{"VariantName": "AllTraffic", "ModelName": "Many", "InitialInstanceCount": 1, "InstanceType": "ml.m5.large", "InitialVariantWeight": 1.0}]}');
INSERT INTO "resources" VALUES('model','many','Many',1795737438.731,1795737438.731,'{"ExecutionRoleArn": "arn:aws:iam::000000000000:role/any", "PrimaryContainer": {"Image": "any/image:1", "ModelDataUrl": "file://MODELS/", "Mode": "MultiModel", "Environment": {"SECRET": "xyz"}}}');
INSERT INTO "resources" VALUES('model','one','one',1795737438.737,1795737438.737,'{"ExecutionRoleArn": "arn:aws:iam::000000000000:role/any", "PrimaryContainer": {"Image": "any/image:1", "ModelDataUrl": "file://MODELS/houston.tar.gz"}}');
CREATE TABLE tags (
        arn TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (arn, key)
    ) WITHOUT ROWID;
INSERT INTO "tags" VALUES('arn:aws:sagemaker:us-east-1:000000000000:endpoint-config/ab','a','b');
INSERT INTO "tags" VALUES('arn:aws:sagemaker:us-east-1:000000000000:endpoint-config/many','a','b');
INSERT INTO "tags" VALUES('arn:aws:sagemaker:us-east-1:000000000000:model/many','team','homes');
COMMIT;
PRAGMA user_version = 1;
