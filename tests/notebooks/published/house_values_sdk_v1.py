# House values by XGBoost, as it was published in 2019: version 1 of the SDK for session and role, boto3 for the rest.
# The cells are in the order and the shape in which their users have them; only training has a stand-in.

# %% Polyhost's line
from polyhost import notebook; notebook.use()

# %%
import datetime
import json
import os
import re
import shutil
import time
from time import gmtime, strftime

import numpy as np
import pandas as pd

ALGORITHM_NAME = 'multi-model-xgboost'
HOUSES_PER_CITY = 50
CITIES = ['NewYork_NY', 'LosAngeles_CA', 'Chicago_IL', 'Houston_TX', 'Dallas_TX', 'Phoenix_AZ']
PARALLEL_TRAINING_JOBS = 4
MAX_YEAR = 2019
COLUMNS = ['PRICE', 'YEAR_BUILT', 'SQUARE_FEET', 'NUM_BEDROOMS', 'NUM_BATHROOMS', 'LOT_ACRES', 'GARAGE_SPACES']

# %%
def random_house():
    house = {'SQUARE_FEET': int(np.random.normal(3000, 750)),
             'NUM_BEDROOMS': np.random.randint(2, 7),
             'NUM_BATHROOMS': np.random.randint(2, 7) / 2,
             'LOT_ACRES': round(np.random.normal(1.0, 0.25), 2),
             'GARAGE_SPACES': np.random.randint(0, 4),
             'YEAR_BUILT': min(MAX_YEAR, int(np.random.normal(1995, 10)))}
    house['PRICE'] = int(150 * house['SQUARE_FEET'] + 10000 * house['NUM_BEDROOMS'])
    return [house[name] for name in COLUMNS]

def random_houses(count):
    return pd.DataFrame([random_house() for _ in range(count)], columns=COLUMNS)

# %%
import boto3
import sagemaker
from sagemaker import get_execution_role
from sagemaker.predictor import csv_serializer

sm_client = boto3.client(service_name='sagemaker')
runtime_sm_client = boto3.client(service_name='sagemaker-runtime')

s3 = boto3.resource('s3')
s3_client = boto3.client('s3')

sagemaker_session = sagemaker.Session()
role = get_execution_role()

ACCOUNT_ID = boto3.client('sts').get_caller_identity()['Account']
REGION = boto3.Session().region_name
BUCKET = sagemaker_session.default_bucket()

IMAGE = '{}.dkr.ecr.{}.amazonaws.com/{}:latest'.format(ACCOUNT_ID, REGION, ALGORITHM_NAME)
DATA_PREFIX = 'DEMO_MME_XGBOOST'
MULTI_MODEL_ARTIFACTS = 'multi_model_artifacts'
INSTANCE_TYPE = 'ml.m4.xlarge'

# %% In place of training: what a job would have left in the bucket
TRAINING_JOBS = {}

def fit(estimator, inputs, location):
    name = '{}-{}'.format(estimator.base_job_name, len(TRAINING_JOBS))
    key = '{}/model_artifacts/{}/{}/output/model.tar.gz'.format(DATA_PREFIX, location, name)
    s3_client.upload_file(os.path.join(os.environ['TRAINED'], location + '.tar.gz'), BUCKET, key)
    TRAINING_JOBS[name] = {'ModelArtifacts': {'S3ModelArtifacts': 's3://{}/{}'.format(BUCKET, key)}}
    return name

# %%
def launch_training_job(location):
    prefix = '{}/model_prep/{}'.format(DATA_PREFIX, location)
    s3.Bucket(BUCKET).objects.filter(Prefix=prefix + '/').delete()
    inputs = sagemaker_session.upload_data(path='data/{}'.format(location), key_prefix=prefix)
    print('Training data uploaded: {}'.format(inputs))

    xgb = sagemaker.estimator.Estimator(IMAGE, role, train_instance_count=1, train_instance_type=INSTANCE_TYPE,
                                        output_path='s3://{}/{}/model_artifacts/{}'.format(BUCKET, DATA_PREFIX, location),
                                        base_job_name='xgb-{}'.format(location.replace('_', '-')),
                                        sagemaker_session=sagemaker_session)
    xgb.set_hyperparameters(max_depth=5, eta=0.2, objective='reg:linear', num_round=25)
    train_input = sagemaker.s3_input(s3_data=inputs + '/train', distribution='FullyReplicated', content_type='csv')
    return fit(xgb, {'train': train_input}, location)

# %%
training_jobs = []
shutil.rmtree('data', ignore_errors=True)
for city in CITIES[:PARALLEL_TRAINING_JOBS]:
    os.makedirs('data/{}/train'.format(city))
    np.savetxt('data/{0}/train/{0}_train.csv'.format(city), random_houses(HOUSES_PER_CITY).values, delimiter=',', fmt='%.2f')
    training_jobs.append(launch_training_job(city))
print('{} training jobs launched: {}'.format(len(training_jobs), training_jobs))

# %%
def parse_model_artifacts(url):
    key = url.split('s3://{}/'.format(BUCKET))[1]
    return key, re.findall('model_artifacts/(.*?)/', key)[0]

def deploy_artifacts_to_mme(job_name):
    response = TRAINING_JOBS[job_name]
    source_key, city = parse_model_artifacts(response['ModelArtifacts']['S3ModelArtifacts'])
    key = '{}/{}/{}.tar.gz'.format(DATA_PREFIX, MULTI_MODEL_ARTIFACTS, city)
    print('Copying {} to {}'.format(source_key, key))
    s3_client.copy_object(Bucket=BUCKET, CopySource={'Bucket': BUCKET, 'Key': source_key}, Key=key)
    return key

# %%
s3.Bucket(BUCKET).objects.filter(Prefix='{}/{}/'.format(DATA_PREFIX, MULTI_MODEL_ARTIFACTS)).delete()

# %% The first one is copied later
for job in training_jobs[1:]:
    deploy_artifacts_to_mme(job)

# %%
multi_model_name = 'housing-{}'.format(strftime('%Y-%m-%d-%H-%M-%S', gmtime()))
model_url = 's3://{}/{}/{}/'.format(BUCKET, DATA_PREFIX, MULTI_MODEL_ARTIFACTS)
container = {'Image': IMAGE, 'ModelDataUrl': model_url, 'Mode': 'MultiModel'}
create_model_response = sm_client.create_model(ModelName=multi_model_name, ExecutionRoleArn=role, Containers=[container])

# %%
endpoint_config_name = multi_model_name
create_endpoint_config_response = sm_client.create_endpoint_config(
    EndpointConfigName=endpoint_config_name,
    ProductionVariants=[{
        'InstanceType': INSTANCE_TYPE,
        'InitialInstanceCount': 1,
        'InitialVariantWeight': 1,
        'ModelName': multi_model_name,
        'VariantName': 'AllTraffic'}])

# %%
endpoint_name = multi_model_name
create_endpoint_response = sm_client.create_endpoint(EndpointName=endpoint_name, EndpointConfigName=endpoint_config_name)
print('Endpoint Arn: ' + create_endpoint_response['EndpointArn'])

# %%
waiter = sm_client.get_waiter('endpoint_in_service')
waiter.wait(EndpointName=endpoint_name)

# %%
predicted = []

def predict_one_house_value(features, target):
    body = ','.join(map(str, features)) + '\n'
    start_time = time.time()
    response = runtime_sm_client.invoke_endpoint(
        EndpointName=endpoint_name, ContentType='text/csv', TargetModel=target, Body=body)
    value = json.loads(response['Body'].read())[0]
    print('${:,.2f}, took {:,d} ms\n'.format(value, int((time.time() - start_time) * 1000)))
    predicted.append([target, features, value])

# %% `aws s3 ls $model_url`
listed = [[item.key for item in s3.Bucket(BUCKET).objects.filter(Prefix='{}/{}/'.format(DATA_PREFIX, MULTI_MODEL_ARTIFACTS))]]

# %%
for i in range(10):
    city = CITIES[np.random.randint(1, PARALLEL_TRAINING_JOBS)]
    predict_one_house_value(random_house()[1:], '{}.tar.gz'.format(city))

# %% A model more, while the endpoint serves
deploy_artifacts_to_mme(training_jobs[0])

# %%
for i in range(5):
    predict_one_house_value(random_house()[1:], '{}.tar.gz'.format(CITIES[0]))

# %%
sm_client.delete_endpoint(EndpointName=endpoint_name)

# %%
sm_client.delete_endpoint_config(EndpointConfigName=endpoint_config_name)

# %%
sm_client.delete_model(ModelName=multi_model_name)
