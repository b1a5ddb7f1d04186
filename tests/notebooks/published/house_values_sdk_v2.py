# House values by XGBoost, as it is published now: version 2 of the SDK, its MultiDataModel and its Predictor.

# %% Polyhost's line
from polyhost import notebook; notebook.use()

# %%
import os
import random
import time
from time import gmtime, strftime

import boto3
import sagemaker
from sagemaker import get_execution_role, image_uris
from sagemaker.deserializers import JSONDeserializer
from sagemaker.estimator import Estimator
from sagemaker.inputs import TrainingInput
from sagemaker.multidatamodel import MultiDataModel
from sagemaker.serializers import CSVSerializer

s3 = boto3.resource('s3')
sagemaker_session = sagemaker.Session()
role = get_execution_role()
BUCKET = sagemaker_session.default_bucket()
REGION = sagemaker_session.boto_region_name
ACCOUNT_ID = sagemaker_session.account_id()

XGBOOST_IMAGE = image_uris.retrieve(framework='xgboost', region=REGION, version='1.5-1')
DATA_PREFIX = 'XGBOOST_BOSTON_HOUSING'
CITIES = ['NewYork_NY', 'LosAngeles_CA', 'Chicago_IL', 'Houston_TX']
INSTANCE_TYPE = 'ml.m4.xlarge'

# %%
def random_house():
    return [min(2019, int(random.gauss(1995, 10))), int(random.gauss(3000, 750)), random.randint(2, 6),
            random.randint(2, 6) / 2, round(random.gauss(1.0, 0.25), 2), random.randint(0, 3)]

# %% In place of training: the url of what a job would have left in the bucket
def fit(estimator, inputs, location):
    key = '{}/model_artifacts/{}/{}/output/model.tar.gz'.format(DATA_PREFIX, location, estimator.base_job_name)
    s3.Bucket(BUCKET).upload_file(os.path.join(os.environ['TRAINED'], location + '.tar.gz'), key)
    return 's3://{}/{}'.format(BUCKET, key)

# %%
def launch_training_job(location):
    inputs = 's3://{}/{}/model_prep/{}'.format(BUCKET, DATA_PREFIX, location)
    xgb = Estimator(image_uri=XGBOOST_IMAGE, role=role, instance_count=1, instance_type=INSTANCE_TYPE,
                    output_path='s3://{}/{}/model_artifacts/{}'.format(BUCKET, DATA_PREFIX, location),
                    base_job_name='xgb-{}'.format(location.replace('_', '-')), sagemaker_session=sagemaker_session)
    xgb.set_hyperparameters(max_depth=5, eta=0.2, objective='reg:linear', num_round=25)
    train_input = TrainingInput(s3_data=inputs + '/train', distribution='FullyReplicated', content_type='csv')
    return xgb, fit(xgb, {'train': train_input}, location)

# %%
estimators = {}
artifacts = {}
for city in CITIES:
    estimators[city], artifacts[city] = launch_training_job(city)

# %% The container of an estimator, the models of a prefix
estimator = estimators[CITIES[0]]
model = sagemaker.model.Model(image_uri=XGBOOST_IMAGE, model_data=artifacts[CITIES[0]], role=role,
                              predictor_cls=sagemaker.predictor.Predictor, sagemaker_session=sagemaker_session)

# %%
model_data_prefix = 's3://{}/{}/multi_model_artifacts/'.format(BUCKET, DATA_PREFIX)
name = 'housing-{}'.format(strftime('%Y-%m-%d-%H-%M-%S', gmtime()))
mme = MultiDataModel(name=name, model_data_prefix=model_data_prefix, model=model, sagemaker_session=sagemaker_session)

# %%
predictor = mme.deploy(initial_instance_count=1, instance_type=INSTANCE_TYPE, endpoint_name=name,
                       serializer=CSVSerializer(), deserializer=JSONDeserializer())

# %%
for city in CITIES[1:]:
    mme.add_model(model_data_source=artifacts[city], model_data_path='{}.tar.gz'.format(city))
listed = [sorted(mme.list_models())]

# %%
predicted = []

def predict(city):
    house, target = random_house(), '{}.tar.gz'.format(city)
    start_time = time.time()
    (value,) = predictor.predict(data=house, target_model=target)
    print('${:,.2f}, took {:,d} ms\n'.format(value, int((time.time() - start_time) * 1000)))
    predicted.append([target, house, value])

for i in range(10):
    predict(random.choice(CITIES[1:]))

# %% A model more, while the endpoint serves
mme.add_model(model_data_source=artifacts[CITIES[0]], model_data_path='{}.tar.gz'.format(CITIES[0]))
listed.append(sorted(mme.list_models()))
for i in range(5):
    predict(CITIES[0])

# %%
predictor.delete_endpoint()
mme.delete_model()
