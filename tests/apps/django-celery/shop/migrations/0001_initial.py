from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations = [  # noqa: RUF012
        migrations.CreateModel(
            name="Run",
            fields=[
                ("id", models.BigAutoField(primary_key=True)),
                ("task", models.CharField(max_length=40)),
                ("number", models.IntegerField(null=True)),
                ("code", models.CharField(max_length=40)),
                ("release", models.CharField(max_length=40)),
                ("began", models.FloatField()),
            ],
        ),
    ]
